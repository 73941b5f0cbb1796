"""Digests of files by stretches of STRETCH_BYTES: each stretch can be checked by itself, from whoever it comes."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from blake3 import blake3

from dcpo_async.records import STRETCH_BYTES

_DIGEST_BYTES = 16
_PIECE_BYTES = 1 << 20
"""What is read is still in a core's cache when it is hashed."""


def worker_count() -> int:
    """Threads that hash or write at once: no more than pay off beside a machine's other work."""
    return min(4, len(os.sched_getaffinity(0)))


def digest_of(stretch: bytes | memoryview) -> str:
    """The first 16 bytes of a stretch's BLAKE3 as 32 hexadecimal digits.

    For instance of nothing it is af1349b9f5f9a1a6a0404dea36dcc949.
    """
    return blake3(stretch).hexdigest(length=_DIGEST_BYTES)


class StretchDigests:
    """Takes a file's bytes in their order and gives the digest of each stretch."""

    def __init__(self) -> None:
        self._state, self._filled = blake3(), 0
        self._digests: list[str] = []

    def update(self, piece: bytes | memoryview) -> None:
        """Add the file's next bytes."""
        view, start = memoryview(piece), 0
        while start < len(view):
            part = view[start : start + STRETCH_BYTES - self._filled]
            self._state.update(part)
            self._filled += len(part)
            start += len(part)
            if self._filled == STRETCH_BYTES:
                self._end_stretch()

    def digests(self) -> tuple[str, ...]:
        """All digests, once the file's last byte was added."""
        if self._filled:
            self._end_stretch()
        return tuple(self._digests)

    def _end_stretch(self) -> None:
        self._digests.append(self._state.hexdigest(length=_DIGEST_BYTES))
        self._state, self._filled = blake3(), 0


def file_digests(path: Path, on_progress: Callable[[], None] = lambda: None) -> tuple[str, ...]:
    """The digests of a file's stretches, computed by several threads.

    Args:
        on_progress: called in this thread after every stretch.
    """
    with path.open("rb", buffering=0) as file:
        starts: Sequence[int] = range(0, os.fstat(file.fileno()).st_size, STRETCH_BYTES)
        if len(starts) <= 1:
            return tuple(_read_digest(file.fileno(), start) for start in starts)
        digests = []
        with ThreadPoolExecutor(worker_count()) as pool:
            for digest in pool.map(lambda start: _read_digest(file.fileno(), start), starts):
                digests.append(digest)
                on_progress()
    return tuple(digests)


def _read_digest(descriptor: int, start: int) -> str:
    state, end = blake3(), start + STRETCH_BYTES
    piece = memoryview(bytearray(_PIECE_BYTES))
    while start < end and (num_bytes := os.preadv(descriptor, [piece[: end - start]], start)):
        state.update(piece[:num_bytes])
        start += num_bytes
    return state.hexdigest(length=_DIGEST_BYTES)
