"""Append-only files of arrays: rows of the ledger say which bytes of which file are theirs.

A record is the number of its parts (little-endian, 4 bytes), the length of each (8 bytes), and the parts.
"""

import contextlib
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import xxhash

from dcpo_async.durable import sync
from dcpo_async.errors import LedgerError, ReleasedError
from learner.ledger.rows import translated

Part = bytes | memoryview

SEGMENT_BYTES = 256 << 20
_HEAD = struct.Struct("<I")
_LENGTH = struct.Struct("<Q")


class Place(NamedTuple):
    """Where a record lies, and the xxh3_128 of its bytes."""

    segment: int
    byte_offset: int
    num_bytes: int
    digest: str


class SegmentReader:
    """Reads records of the files in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, place: Place) -> tuple[bytes, ...]:
        """The parts of a record.

        Raises:
            ReleasedError: its file was deleted.
            LedgerError: its bytes do not match their digest.
        """
        path, (_, offset, num_bytes, digest) = self.path(place.segment), place
        try:
            with path.open("rb") as file:
                file.seek(offset)
                record = file.read(num_bytes)
        except FileNotFoundError:
            raise ReleasedError(
                f"{path}: gone, but a step asks for groups in it; was an older checkpoint put back?"
            ) from None
        if xxhash.xxh3_128_hexdigest(record) != digest:
            raise LedgerError(
                f"{path}: bytes {offset} to {offset + num_bytes} do not match their digest; restore the file"
            )
        return tuple(_parts(record))

    def path(self, number: int) -> Path:
        """The file of this number."""
        return self._folder / f"{number:06d}.segment"


class Segments(SegmentReader):
    """Appends records; they are on disk once `sync` has returned.

    Args:
        folder: of the files.
        newest, end: number of the newest file that a row points to, and where its last record ends: what lies beyond
            was never acknowledged, and is cut.
        segment_bytes: a file that has grown beyond this is followed by the next one.

    Raises LedgerError where a file is shorter than its rows say, or the disk refuses.
    """

    def __init__(self, folder: Path, newest: int, end: int, segment_bytes: int = SEGMENT_BYTES) -> None:
        super().__init__(folder)
        self._number, self._end, self._segment_bytes = newest, end, segment_bytes
        self._is_dirty = False
        with _disk_errors(folder):
            self._cut_tails()
            self._file = self.path(newest).open("r+b")
            sync(folder)

    def append(self, parts: Sequence[Part]) -> Place:
        """Write a record; raises LedgerError when the disk refuses."""
        lengths = b"".join(_LENGTH.pack(memoryview(part).nbytes) for part in parts)
        record = b"".join((_HEAD.pack(len(parts)), lengths, *parts))
        with _disk_errors(self._folder):
            if self._end > self._segment_bytes:
                self._begin_file()
            place = Place(self._number, self._end, len(record), xxhash.xxh3_128_hexdigest(record))
            self._file.seek(place.byte_offset)
            self._file.write(record)
        self._end += len(record)
        self._is_dirty = True
        return place

    def read(self, place: Place) -> tuple[bytes, ...]:
        """The parts of a record, also of one that is still in a buffer."""
        self._file.flush()
        return super().read(place)

    def sync(self) -> None:
        """Make everything that was appended durable; raises LedgerError when the disk refuses."""
        if self._is_dirty:
            with _disk_errors(self._folder):
                self._file.flush()
                os.fsync(self._file.fileno())
            self._is_dirty = False

    def release(self, is_needed: Callable[[int], bool]) -> list[int]:
        """Delete files that are not needed any more, never the newest; returns their numbers."""
        numbers = sorted(int(path.stem) for path in self._folder.glob("*.segment"))
        released = [number for number in numbers if number < self._number and not is_needed(number)]
        for number in released:
            self.path(number).unlink()
        return released

    def abandon(self) -> None:
        """Let go of the newest file, without what was not synced."""
        self._is_dirty = False
        # A full disk may refuse the rest of the buffer, which nobody needs any more.
        with contextlib.suppress(OSError):
            self._file.close()

    def _cut_tails(self) -> None:
        for path in self._folder.glob("*.segment"):
            if int(path.stem) > self._number:
                path.unlink()
        path = self.path(self._number)
        path.touch()
        if (found := path.stat().st_size) < self._end:
            raise LedgerError(f"{path}: {found} bytes, but the ledger points to {self._end}; restore the file")
        os.truncate(path, self._end)

    def _begin_file(self) -> None:
        self.sync()
        self._file.close()
        self._number, self._end = self._number + 1, 0
        self._file = self.path(self._number).open("w+b")
        sync(self._folder)


def _parts(record: bytes) -> Iterator[bytes]:
    (count,) = _HEAD.unpack_from(record)
    start = _HEAD.size + count * _LENGTH.size
    for i in range(count):
        (length,) = _LENGTH.unpack_from(record, _HEAD.size + i * _LENGTH.size)
        yield record[start : start + length]
        start += length


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise translated(folder, error) from error
