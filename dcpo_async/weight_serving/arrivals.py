"""Which stretches of a download have arrived, so that others of the machine can pass them on while the rest comes."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dcpo_async.records import STRETCH_BYTES
from dcpo_async.weights.locks import opened
from dcpo_async.weights.manifest import FileEntry, PatchEntry

ARRIVALS_NAME = ".arrived"
"""In the folder of the download: a line of JSON, then one byte for each stretch of each file, 1 once it is there."""
_UNFINISHED_NAME = ".arrived-new"


def _count(num_bytes: int) -> int:
    return -(-num_bytes // STRETCH_BYTES)


class Arrivals:
    """Notes what arrives; any thread may do so."""

    def __init__(self, descriptor: int, header_bytes: int, files: Mapping[str, int]) -> None:
        self._descriptor, self._firsts, at = descriptor, dict[str, int](), header_bytes
        for name, num_bytes in files.items():
            self._firsts[name] = at
            at += _count(num_bytes)
        self._flags = header_bytes, at - header_bytes

    def add(self, file: str, offset: int) -> None:
        """The stretch of a file that begins at `offset` is written, and matches its digest."""
        os.pwrite(self._descriptor, b"\1", self._firsts[file] + offset // STRETCH_BYTES)

    def is_complete(self) -> bool:
        """Whether every stretch was added."""
        first, count = self._flags
        return os.pread(self._descriptor, count, first) == b"\1" * count


@contextmanager
def recording(folder: Path, weights_version: int, entries: Sequence[FileEntry | PatchEntry]) -> Iterator[Arrivals]:
    """Keep a record of a download in its folder, until the end of the block: then the folder holds its files alone."""
    files = {entry.name: entry.num_bytes for entry in entries}
    header = json.dumps({"weights_version": weights_version, "files": files}).encode() + b"\n"
    unfinished, path = folder / _UNFINISHED_NAME, folder / ARRIVALS_NAME
    unfinished.write_bytes(header + bytes(sum(map(_count, files.values()))))
    # Readers see it whole; what it says is void after a power failure, as the download is.
    unfinished.rename(path)
    try:
        with opened(path, os.O_RDWR) as descriptor:
            yield Arrivals(descriptor, len(header), files)
    finally:
        path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Arrived:
    """What a download had brought when its record was read.

    Attributes:
        folder: of the download.
        weights_version: that is fetched.
        files: lengths in bytes, by name.
        flags: one byte for each stretch.
    """

    folder: Path
    weights_version: int
    files: Mapping[str, int]
    flags: bytes

    def has(self, file: str, offset: int) -> bool:
        """Whether the stretch of one of the files that holds byte `offset` is there."""
        first = 0
        for name, num_bytes in self.files.items():
            if name == file:
                return offset < num_bytes and self.flags[first + offset // STRETCH_BYTES] == 1
            first += _count(num_bytes)
        return False


def read_arrived(folder: Path) -> Arrived | None:
    """The record in the folder of a download; None where there is none, or its writer was another program."""
    try:
        header, _, flags = (folder / ARRIVALS_NAME).read_bytes().partition(b"\n")
        said = json.loads(header)
        files = {str(name): int(num_bytes) for name, num_bytes in said["files"].items()}
        is_whole = len(flags) == sum(map(_count, files.values()))
        return Arrived(folder, int(said["weights_version"]), files, flags) if is_whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
