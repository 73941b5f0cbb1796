"""Marks of checked folders: a version that one process of a machine has checked, the others need not read again."""

import asyncio
import fcntl
import os
from collections.abc import Collection
from pathlib import Path

from blake3 import blake3

from actor.weights.silence import Silence
from dcpo_async.errors import WeightsError
from dcpo_async.weights.locks import has_lock, machine_id, opened
from dcpo_async.weights.manifest import Manifest
from dcpo_async.weights.store import verify

MARKS_NAME = ".checked"
POLL_SECONDS = 0.05
_IS_WHOLE = b"whole\n"


class CheckedMarks:
    """Marks in a folder of this user's, one file for each state of a version's folder.

    A mark is named for the manifest and for device, inode, length and times of every file, so that none holds for a
    folder that was written to after its check. It is locked (flock, exclusive) by the process that checks.

    Args:
        folder: private to this user; made when it is needed.
        silence_seconds: how long another process may check without progress before this one checks for itself.
    """

    def __init__(self, folder: Path, silence_seconds: float) -> None:
        self._folder, self._silence_seconds = folder, silence_seconds

    async def is_whole(self, folder: Path, manifest: Manifest) -> bool:
        """Whether a folder holds every byte of a manifest; read only where no process has done so before."""
        mark = await asyncio.to_thread(self._mark, folder, manifest)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        with opened(mark, os.O_RDWR | os.O_CREAT) as lock:
            await self._wait(lock)
            if os.pread(lock, len(_IS_WHOLE), 0) == _IS_WHOLE:
                return True
            is_whole = await asyncio.to_thread(_is_whole, folder, manifest, lock)
            # One that was written to meanwhile has another mark, which is empty.
            if is_whole:
                os.pwrite(lock, _IS_WHOLE, 0)
            return is_whole

    def add(self, folder: Path, manifest: Manifest) -> None:
        """Every byte of a folder was checked as it came."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._mark(folder, manifest).write_bytes(_IS_WHOLE)

    def prune(self, keep: Collection[int]) -> None:
        """Remove the marks of versions before the newest to keep, but for the others to keep; without any, all.

        At worst a version is checked again.
        """
        if not self._folder.is_dir():
            return
        for mark in self._folder.iterdir():
            version = mark.name.partition("-")[0]
            if version.isdecimal() and int(version) not in keep and int(version) < max(keep, default=1 << 62):
                mark.unlink(missing_ok=True)

    def _mark(self, folder: Path, manifest: Manifest) -> Path:
        # Of this boot: a file whose bytes a power failure took may have its length and times all the same.
        state = blake3(f"{machine_id()} {manifest.to_json()}\n".encode())
        for path in (folder, *sorted(folder.iterdir())):
            found = path.stat()
            # The folder's own times change when it gets its name.
            times = () if path == folder else (found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            name = "" if path == folder else path.name
            state.update(f"{name!r} {found.st_dev} {found.st_ino} {times}\n".encode())
        return self._folder / f"{manifest.weights_version}-{state.hexdigest(length=16)}"

    async def _wait(self, lock: int) -> None:
        """Wait while another process checks; one that makes no progress is not waited for."""
        silence = Silence(self._silence_seconds)
        heartbeat = os.fstat(lock).st_mtime_ns
        while not has_lock(lock, fcntl.LOCK_EX):
            await asyncio.sleep(POLL_SECONDS)
            if heartbeat != (heartbeat := os.fstat(lock).st_mtime_ns):
                silence.broken()
            if silence.is_over():
                return


def _is_whole(folder: Path, manifest: Manifest, mark: int) -> bool:
    try:
        return verify(folder, lambda: os.utime(mark)) == manifest
    except (WeightsError, OSError):
        return False
