"""A disk as small as a test wants it."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[bool]:
    """Put a disk of this size under a folder that is made for it; False where that is not permitted."""
    folder.mkdir()
    is_mounted = shutil.which("mount") is not None and _mount(folder, megabytes)
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


def resize(folder: Path, megabytes: int) -> None:
    """Make such a disk larger or smaller."""
    assert _mount(folder, megabytes, "remount,")


def _mount(folder: Path, megabytes: int, how: str = "") -> bool:
    words = ["mount", "-t", "tmpfs", "-o", f"{how}size={megabytes}m", "tmpfs", str(folder)]
    return subprocess.run(words, check=False).returncode == 0
