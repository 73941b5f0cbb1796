"""Locks on the folders of versions: whoever reads one keeps it from being removed.

They are flocks on the folder itself: the kernel drops those of a process that dies, whatever it was doing.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

UNLOCKABLE = (errno.EBADF, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


def hold(folder: Path) -> int | None:
    """Lock a folder against removal; returns what `let_go` takes, None where there is none or it is being removed."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    is_held = False
    try:
        is_held = has_lock(descriptor, fcntl.LOCK_SH)
    finally:
        if not is_held:
            os.close(descriptor)
    return descriptor if is_held else None


def let_go(descriptor: int) -> None:
    """Unlock and close; a lock that is only closed would live on in a forked child."""
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def has_lock(descriptor: int, kind: int) -> bool:
    """Try to lock without waiting."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """A file descriptor; closing it drops its lock."""
    descriptor = os.open(path, flags, 0o600)
    try:
        yield descriptor
    finally:
        let_go(descriptor)


def is_unused(descriptor: int, *, if_unlockable: bool = False) -> bool:
    """Whether nobody holds the folder; then it is locked for this descriptor alone.

    Args:
        if_unlockable: the answer where the file system knows no such locks, so that nobody can hold anything.
    """
    try:
        return has_lock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno in UNLOCKABLE:
            return if_unlockable
        raise


@cache
def machine_id() -> str:
    """The same for all processes between two boots of a machine, whose locks see each other; empty where unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
