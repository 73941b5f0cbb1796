"""A machine's cache as others may read it: whole versions, patches, and what has come of the download that goes on."""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcpo_async.errors import WeightsError
from dcpo_async.protocol.weight_messages import ChunkWant
from dcpo_async.weight_serving.arrivals import ARRIVALS_NAME, Arrived, read_arrived
from dcpo_async.weight_serving.shelf import MappedFiles
from dcpo_async.weights.manifest import is_publishable
from dcpo_async.weights.places import UNFINISHED, patches_folder, version_folder

_PATCH_NAME = re.compile(r"\d{8,}\.patch")


class CacheShelf:
    """Reads a cache that other processes fill; whoever asks has the manifest, and checks what it gets.

    Args:
        folder: of the cache; it need not be there yet.

    Attributes:
        downloads: those that went on at the last `look`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._files = folder, MappedFiles()
        self.downloads: tuple[Arrived, ...] = ()

    def look(self) -> None:
        """See what has come."""
        found = (read_arrived(path.parent) for path in self._folder.glob(f"{UNFINISHED}*/{ARRIVALS_NAME}"))
        self.downloads = tuple(arrived for arrived in found if arrived is not None)

    def progress(self) -> tuple[tuple[Path, int], ...]:
        """Another one whenever a stretch has come, or a download began or ended."""
        return tuple((arrived.folder, arrived.flags.count(1)) for arrived in self.downloads)

    def is_fetched(self, want: ChunkWant) -> bool:
        """Whether a download that goes on brings the file."""
        return any(_brings(arrived, want) for arrived in self.downloads)

    def chunk(self, want: ChunkWant) -> NDArray[np.uint8] | None:
        """The bytes, in the pages of their file; None while they are not here.

        Raises:
            WeightsError: they never will be: no version has such a file, or it is shorter.
        """
        is_patch = _PATCH_NAME.fullmatch(want.file) is not None
        if not is_patch and not is_publishable(want.file):
            raise WeightsError(f"no version has a file {want.file!r}")
        whole = patches_folder(self._folder) if is_patch else version_folder(self._folder, want.weights_version)
        coming = [
            arrived.folder
            for arrived in self.downloads
            if _brings(arrived, want)
            and all(arrived.has(want.file, at) for at in (want.offset, want.offset + want.num_bytes - 1))
        ]
        for folder in (whole, *coming):
            if (data := self._read(folder / want.file, want)) is not None:
                return data
        return None

    def drop_removed(self) -> None:
        """Let go of files that were removed, so that their memory is free."""
        self._files.drop_removed()

    def _read(self, path: Path, want: ChunkWant) -> NDArray[np.uint8] | None:
        try:
            num_bytes = path.stat().st_size
            if want.offset + want.num_bytes <= num_bytes:
                return self._files.read(path, num_bytes, want.offset, want.num_bytes)
        except OSError:
            # It was never here, or has just been removed, or got its name.
            return None
        raise WeightsError(f"{want.file} has {num_bytes} bytes; asked for {want.num_bytes} from {want.offset} on")


def _brings(arrived: Arrived, want: ChunkWant) -> bool:
    # A patch is the same in every chain that it is part of.
    is_same = arrived.weights_version == want.weights_version or want.file.endswith(".patch")
    return is_same and want.file in arrived.files
