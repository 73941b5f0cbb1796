"""Files that another process may read, or that must survive a power failure: temporary name, fsync, rename."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Of an OSError: there is no room on the disk, or a quota is used up."""


def write_text(path: Path, text: str) -> None:
    """Write a file that another process may read at any moment: it sees the old content or the new, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, content: Any, *, indent: int | None = 2) -> None:
    """Write a JSON file as `write_text` does; in one line (None) in a fifth of the time."""
    write_text(path, json.dumps(content, indent=indent))


def sync(path: Path) -> None:
    """Make a file's bytes, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make a folder and everything in it durable."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def publish_folder(writing: Path, folder: Path) -> None:
    """Give a folder that is complete its name: it stands whole and on disk under it, or not at all.

    Args:
        writing: beside the final one, under a name that no reader takes.
        folder: does not exist, or is an empty folder.
    """
    sync_tree(writing)
    writing.rename(folder)
    sync(folder.parent)


def replace_folder(writing: Path, folder: Path) -> None:
    """Put a folder that is complete in the place of another, which stays until the new one is on disk.

    A process that dies between the two renames leaves neither under the name, but both whole beside it.
    """
    sync_tree(writing)
    replaced = folder.with_name(f".replaced-{folder.name}")
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    writing.rename(folder)
    sync(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)
