"""Files of a folder that goes on changing, held open so that they can be copied as they stood at one moment."""

import errno
import os
from collections.abc import Mapping, Set
from pathlib import Path
from typing import BinaryIO

import xxhash

from dcpo_async.errors import ConfigError

_BLOCK_BYTES = 8 << 20


class HeldFiles:
    """Files that are read to their end, whatever is removed or put in their place meanwhile.

    Args:
        root: that their names begin from.
    """

    def __init__(self, root: Path) -> None:
        self._root, self._files = root, dict[str, BinaryIO]()

    def hold(self, path: Path) -> None:
        """Open a file, once; raises FileNotFoundError where it is not there, ConfigError where too many are open."""
        if (name := str(path.relative_to(self._root))) in self._files:
            return
        try:
            self._files[name] = path.open("rb")
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            raise ConfigError(
                f"{self._root}: {len(self._files)} of its files are held open, and this process may open no more; "
                "raise its limit (ulimit -n)"
            ) from None

    def hold_all(self, folder: Path) -> None:
        """Open every file below a folder but those under a name that is written or removed just now."""
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder).parts
            if path.is_file() and not any(part.startswith(".") for part in inside):
                self.hold(path)

    def all_stand(self) -> bool:
        """Whether each file still stands under its name: then all of them stood there together."""
        return all(_is_at(self._root / name, file) for name, file in self._files.items())

    @property
    def names(self) -> Set[str]:
        """Of the files, below the root."""
        return self._files.keys()

    def copy(self, to: Path, ends: Mapping[str, int] | None = None) -> dict[str, str]:
        """Write the files below another folder, durable once that folder is synced.

        Args:
            to: exists.
            ends: which of them, by name, and how many bytes of each; all of all without it.

        Returns:
            The xxh3_128 of what was read, by name.
        """
        wanted = dict.fromkeys(self._files) if ends is None else ends
        return {name: _copy(self._files[name], to / name, end) for name, end in wanted.items()}

    def close(self) -> None:
        """Let go of all."""
        for file in self._files.values():
            file.close()


def _is_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _copy(file: BinaryIO, to: Path, end: int | None) -> str:
    digest, left = xxhash.xxh3_128(), end
    to.parent.mkdir(parents=True, exist_ok=True)
    with to.open("xb") as copy:
        while block := file.read(_BLOCK_BYTES if left is None else min(_BLOCK_BYTES, left)):
            copy.write(block)
            digest.update(block)
            left = None if left is None else left - len(block)
    return digest.hexdigest()
