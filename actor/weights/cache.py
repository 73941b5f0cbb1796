"""Versions that the processes of a machine share: one downloads, the others find its folder."""

import asyncio
import fcntl
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

from actor.weights.silence import Silence
from dcpo_async.errors import WeightsError
from dcpo_async.weights.locks import can_be_locked, has_lock, hold, let_go, opened
from dcpo_async.weights.manifest import MANIFEST_NAME, Manifest
from dcpo_async.weights.store import (
    discard,
    discard_unused,
    remove_unfinished,
    unfinished_folder,
    verify,
    version_folder,
    versions,
)

LOCK_NAME = ".fetch.lock"
POLL_SECONDS = 0.05
MIN_MEMORY_BYTES = 1 << 30
OTHERS_WRITE = 0o022


def default_cache_folder(run_id: str) -> Path:
    """In shared memory where there is some, else in the system's temporary folder; raises WeightsError."""
    if Path(run_id).name != run_id or run_id in ("", ".."):
        raise WeightsError(f"run id {run_id!r} cannot name a folder")
    memory = Path("/dev/shm")
    # A container's default of 64 MiB holds no model.
    is_usable = os.access(memory, os.W_OK) and shutil.disk_usage(memory).total >= MIN_MEMORY_BYTES
    parent = memory if is_usable else Path(tempfile.gettempdir())
    return parent / f"dcpo-{os.getuid()}" / run_id


class WeightsCache:
    """A folder of whole versions, for all processes of a user that follow one run.

    A version's folder is locked (flock, shared) while a process uses it. The kernel drops the locks of a process that
    dies, whatever it was doing. The download lock's modification time is the heartbeat of its holder.

    Args:
        folder: of this run alone, and of this user; made when it is needed.
        silence_seconds: how long a process that downloads may make no progress.
    """

    def __init__(self, folder: Path, silence_seconds: float) -> None:
        self._folder, self._silence_seconds = folder, silence_seconds
        self._held: dict[int, int] = {}

    async def hold(self, manifest: Manifest, download: Callable[[Path], Awaitable[None]]) -> Path:
        """The folder of a version, every byte checked; it stays until `prune` or `close`.

        Args:
            download: fills an unfinished folder with the version's files; called where no other process has done so.

        Raises:
            WeightsError: the bytes do not match, there is no room for them, or the process that downloads fell silent.
        """
        await asyncio.to_thread(_make_private, self._folder)
        folder = version_folder(self._folder, manifest.weights_version)
        rejected: set[int] = set()
        while not await self._hold_cached(folder, manifest, rejected):
            with opened(self._folder / LOCK_NAME, os.O_RDWR | os.O_CREAT) as lock:
                if await self._may_download(lock, folder, rejected):
                    await self._download(manifest, folder, download)
                    break
        return folder

    async def hold_in_place(self, folder: Path, manifest: Manifest) -> bool:
        """Hold a version where its writer has put it, on this machine, instead of a copy; False where that is not safe.

        It is not where another user could write to it, where its file system knows no locks that would keep it from
        being removed, or where its bytes are not those of the manifest.
        """
        is_safe = _is_private(folder) and can_be_locked(folder.parent)
        return is_safe and await self._hold_cached(folder, manifest, set())

    def report_progress(self) -> None:
        """A download goes on: other processes need not give up on this one."""
        os.utime(self._folder / LOCK_NAME)

    def prune(self, keep: Collection[int]) -> list[int]:
        """Let go of all versions but these, and remove those that no process of this machine uses.

        Returns the versions removed. Freeing gigabytes takes a moment: call it in a thread.
        """
        for version in [held for held in self._held if held not in keep]:
            let_go(self._held.pop(version))
        removed = []
        for version in versions(self._folder):
            folder = version_folder(self._folder, version)
            if version not in keep and discard_unused(folder):
                removed.append(version)
        return removed

    def close(self) -> None:
        """Let go of every version."""
        while self._held:
            let_go(self._held.popitem()[1])

    async def _hold_cached(self, folder: Path, manifest: Manifest, rejected: set[int]) -> bool:
        """Hold the version's folder if it is there and whole; one that is not is added to `rejected`."""
        if not self._hold(folder, manifest.weights_version):
            return False
        inode = os.fstat(self._held[manifest.weights_version]).st_ino
        try:
            is_whole = await asyncio.to_thread(verify, folder) == manifest
        except (WeightsError, OSError):
            is_whole = False
        # A folder that was exchanged meanwhile is not the one that is held.
        if is_whole and _inode(folder) == inode:
            return True
        let_go(self._held.pop(manifest.weights_version))
        rejected.add(inode)
        return False

    def _hold(self, folder: Path, version: int) -> bool:
        """Lock a folder against removal, for as long as this process uses it."""
        descriptor = hold(folder)
        if descriptor is None:
            return False
        if version in self._held:
            let_go(self._held[version])
        self._held[version] = descriptor
        return True

    async def _may_download(self, lock: int, folder: Path, rejected: set[int]) -> bool:
        """Wait for the download lock; False once another process has brought the version in."""
        silence = Silence(self._silence_seconds)
        heartbeat = os.fstat(lock).st_mtime_ns
        while not (is_ours := has_lock(lock, fcntl.LOCK_EX)) and _inode(folder) in {None, *rejected}:
            await asyncio.sleep(POLL_SECONDS)
            if heartbeat != (heartbeat := os.fstat(lock).st_mtime_ns):
                silence.broken()
            holder = os.pread(lock, 20, 0).decode(errors="replace").strip()
            silence.check(f"process {holder} of this machine, which fetches weights to {folder.parent},")
        if is_ours and _inode(folder) in {None, *rejected}:
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
            return True
        await asyncio.sleep(POLL_SECONDS)
        return False

    async def _download(self, manifest: Manifest, folder: Path, download: Callable[[Path], Awaitable[None]]) -> None:
        """Bring a version in, whole and held; only under the download lock."""
        await asyncio.to_thread(remove_unfinished, self._folder)
        with unfinished_folder(self._folder) as writing:
            await download(writing)
            (writing / MANIFEST_NAME).write_text(manifest.to_json())
            # Not fsynced: what a power failure leaves is checked before it is used.
            await asyncio.to_thread(verify, writing, self.report_progress)
            # Held before it has its name, so that no other process can remove it in between.
            self._hold(writing, manifest.weights_version)
            await asyncio.to_thread(discard, folder)
            writing.rename(folder)


def _make_private(folder: Path) -> None:
    """Make the cache folder; one that another user could write to is refused."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path, owners in ((folder, {os.getuid()}), (folder.parent, {os.getuid(), 0})):
        if (owner := path.lstat().st_uid) not in owners:
            raise WeightsError(f"{path} belongs to user {owner}, not {os.getuid()}: weights there are not safe")
    if folder.stat().st_mode & OTHERS_WRITE:
        raise WeightsError(f"others may write to {folder}; run chmod go-w on it")


def _is_private(folder: Path) -> bool:
    """Whether only this user, or root, can change a version and its name."""
    try:
        stats = [path.stat() for path in (folder, folder.parent)]
    except OSError:
        return False
    return all(stat.st_uid in (os.getuid(), 0) and not stat.st_mode & OTHERS_WRITE for stat in stats)


def _inode(folder: Path) -> int | None:
    try:
        return folder.stat().st_ino
    except FileNotFoundError:
        return None
