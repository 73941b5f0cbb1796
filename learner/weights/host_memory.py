"""Memory of the host that GPUs copy into: all pages at once, and pinned where there are GPUs."""

import errno
import logging
import mmap

import torch
from torch import Tensor

log = logging.getLogger(__name__)

_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE, which the module mmap does not name."""


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
