"""Writes a file that torch.load reads, and digests it on the way."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
import xxhash

_BLOCK_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file that is on disk.

    Attributes:
        digest: xxh3_128 of its bytes, in hexadecimal.
        num_bytes: its length.
    """

    digest: str
    num_bytes: int


def write_torch_file(path: Path, content: Any, on_progress: Callable[[], None]) -> WrittenFile:
    """Write what torch.load reads, and make it durable; for a thread beside the training.

    Nothing here holds the interpreter's lock for longer than it takes to pickle `content` without its tensors, which
    are written as they lie in memory. So zip's own checksums stay out, which torch computes under the lock, 0.25 s for
    each GB: torch does not look at them, and the digest covers every byte.

    Args:
        path: in a folder that exists.
        content: tensors on the host, in dictionaries and lists; nobody changes it meanwhile.
        on_progress: called after each block, and when the file is durable.

    Raises:
        OSError: it cannot be written, such as for want of room.
    """
    torch.serialization.set_crc32_options(False)
    with path.open("wb", buffering=0) as file:
        sink = _Sink(file.fileno(), on_progress)
        torch.save(content, cast("IO[bytes]", sink))
        if sink.failure is not None:
            raise sink.failure
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    on_progress()
    return WrittenFile(sink.digest.hexdigest(), sink.num_bytes)


class _Sink:
    """What torch.save writes to. A failure is kept: torch would turn an exception into one of its own."""

    def __init__(self, descriptor: int, on_progress: Callable[[], None]) -> None:
        self._descriptor, self._on_progress = descriptor, on_progress
        self.digest, self.num_bytes = xxhash.xxh3_128(), 0
        self.failure: OSError | None = None

    def write(self, data: memoryview) -> int:
        """Take the next bytes; a tensor's come all at once."""
        view = memoryview(data)
        for start in range(0, len(view), _BLOCK_BYTES):
            if self.failure is None:
                self._write_block(view[start : start + _BLOCK_BYTES])
        return len(view)

    def flush(self) -> None:
        """Nothing is held back."""

    def _write_block(self, block: memoryview) -> None:
        self.digest.update(block)
        try:
            while block:
                written = os.write(self._descriptor, block)
                block, self.num_bytes = block[written:], self.num_bytes + written
        except OSError as failure:
            self.failure = failure
            return
        # Has the kernel write at once and drop what is written: a checkpoint would push everything else out of its
        # cache, and the ledger's fsync would wait behind gigabytes.
        os.posix_fadvise(self._descriptor, 0, self.num_bytes, os.POSIX_FADV_DONTNEED)
        self._on_progress()
