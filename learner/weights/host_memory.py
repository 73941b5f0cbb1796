"""Memory of the host that GPUs copy into: all pages at once, and pinned where there are GPUs."""

import errno
import logging
import mmap
from pathlib import Path

import torch
from torch import Tensor

log = logging.getLogger(__name__)

_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE, which the module mmap does not name."""


UNLIMITED = 1 << 62


def available(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory that the machine has left, and that this container may have."""
    line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:"))
    return min(int(line.split()[1]) * 1024, _container_room(cgroup))


def _container_room(cgroup: Path) -> int:
    """Bytes until the limit of this container; of the page cache all but shared memory goes where it is needed."""
    limit, used, stat = (cgroup / name for name in ("memory.max", "memory.current", "memory.stat"))
    if not all(path.is_file() for path in (limit, used, stat)) or limit.read_text().strip() == "max":
        return UNLIMITED
    lines = (line.split() for line in stat.read_text().splitlines())
    counts = {name: int(value) for name, value in lines}
    return int(limit.read_text()) - int(used.read_text()) + counts.get("file", 0) - counts.get("shmem", 0)


def require(num_bytes: int) -> None:
    """Look whether so much is left: beyond its limit a container's processes are ended rather than told.

    Raises:
        MemoryError: it is not.
    """
    if (room := available()) < num_bytes:
        raise MemoryError(f"no memory for {num_bytes} bytes: {max(0, room)} are left")


def populate(mapping: mmap.mmap) -> None:
    """Have the kernel hand out all pages now, before a step would wait for them.

    Raises:
        MemoryError: there are not so many.
    """
    try:
        mapping.madvise(_POPULATE_WRITE)
    except OSError as error:
        # Kernels before 5.14 do not know the advice.
        if error.errno in (errno.ENOMEM, errno.ENOSPC, errno.EFAULT):
            raise MemoryError(f"no memory for {len(mapping)} bytes") from error


def pin(memory: Tensor) -> None:
    """Let GPUs copy into it at the speed of the bus; without it they copy through memory of the driver's."""
    if not torch.cuda.is_available():
        return
    code = torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)
    if int(code) != 0:
        log.warning("%d bytes cannot be pinned (CUDA says %s): copies into them are slower", memory.nbytes, code)


def unpin(memory: Tensor) -> None:
    """Let the kernel have it back; before it is unmapped."""
    if torch.cuda.is_available():
        torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())
