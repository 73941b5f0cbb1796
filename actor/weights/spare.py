"""The files of a version that nobody uses any more, kept so that the next version is written into their pages."""

import contextlib
import fcntl
import os
import shutil
from pathlib import Path

from dcpo_async.weights.locks import opened
from dcpo_async.weights.store import discard

SPARE_NAME = ".spare"


def set_aside(folder: Path) -> None:
    """Keep the files of a version that this process has locked, in its cache.

    It is removed where other files are kept already, and where room for one more version would not be left.
    """
    num_bytes = sum(path.stat().st_size for path in folder.iterdir())
    if shutil.disk_usage(folder).free >= num_bytes:
        with contextlib.suppress(OSError):
            folder.rename(folder.with_name(SPARE_NAME))
            return
    discard(folder)


def new_file(path: Path, num_bytes: int) -> None:
    """Make a file of a length, of a version that is being written to a cache; it may hold anything.

    It takes the pages of a file of its name that is kept, unless some process has that open or mapped still: a relay
    that sends from it, or an engine that was started with it.
    """
    try:
        # Then nobody opens it any more.
        (path.parent.with_name(SPARE_NAME) / path.name).rename(path)
    except FileNotFoundError:
        path.touch(exist_ok=False)
    else:
        if not _is_ours_alone(path):
            path.unlink()
            path.touch()
    os.truncate(path, num_bytes)


def remove(cache: Path) -> None:
    """Remove what is kept in a cache, if there is one."""
    if (cache / SPARE_NAME).exists():
        discard(cache / SPARE_NAME)


def _is_ours_alone(path: Path) -> bool:
    """Whether no process has a file open or mapped: the kernel grants a lease for writing only then."""
    with opened(path, os.O_RDWR) as descriptor:
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError:
            return False
    return True
