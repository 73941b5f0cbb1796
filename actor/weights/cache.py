"""Versions that the processes of a machine share: one downloads, the others find its folder."""

import asyncio
import fcntl
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from stat import S_ISVTX
from typing import NamedTuple

from actor.weights import spare
from actor.weights.marks import MARKS_NAME, CheckedMarks
from actor.weights.silence import Silence
from dcpo_async.errors import UnusableError
from dcpo_async.weights.locks import has_lock, hold, let_go, opened
from dcpo_async.weights.manifest import MANIFEST_NAME, Manifest
from dcpo_async.weights.places import UNFINISHED, patches_folder, version_folder, versions
from dcpo_async.weights.store import discard, discard_unused, prune_patches, remove_unfinished, unfinished_folder

log = logging.getLogger(__name__)

LOCK_NAME = ".fetch.lock"
POLL_SECONDS = 0.05
MIN_MEMORY_BYTES = 1 << 30
OTHERS_WRITE = 0o022
JUST_BEGUN_SECONDS = 60.0
"""A cache that was written to so recently is not swept: who wrote may not hold anything yet."""


def cache_folder(run_id: str, parent: Path | None = None) -> Path:
    """In a folder of the user's choice, else in the default one; raises WeightsError."""
    if parent is None:
        return default_cache_folder(run_id)
    _check_name(run_id)
    # Absolute, as a relay and an engine get it told; and private, as the default one is.
    return parent.resolve() / f"dcpo-{os.getuid()}" / run_id


def default_cache_folder(run_id: str) -> Path:
    """In shared memory where there is some, else in the system's temporary folder; raises WeightsError."""
    _check_name(run_id)
    memory = Path("/dev/shm")
    # A container's default of 64 MiB holds no model.
    is_usable = os.access(memory, os.W_OK) and shutil.disk_usage(memory).total >= MIN_MEMORY_BYTES
    parent = memory if is_usable else Path(tempfile.gettempdir())
    return parent / f"dcpo-{os.getuid()}" / run_id


def _check_name(run_id: str) -> None:
    if Path(run_id).name != run_id or run_id in ("", ".."):
        raise UnusableError(f"run id {run_id!r} cannot name a folder")


class Place(NamedTuple):
    """A folder on this machine, and what tells that it is the same one for another process."""

    folder: Path
    device: int
    inode: int


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
        self._held: dict[tuple[int, Path], int] = {}
        self._marks = CheckedMarks(folder / MARKS_NAME, silence_seconds)

    async def hold(self, manifest: Manifest, download: Callable[[Path], Awaitable[None]]) -> Path:
        """The folder of a version, every byte checked; it stays until `prune` or `close`.

        Args:
            download: fills an unfinished folder with the version's files, every byte checked; called where no other
                process has done so.

        Raises:
            WeightsError: the bytes do not match, there is no room for them, or the process that downloads fell silent.
        """
        folder = version_folder(self._folder, manifest.weights_version)
        rejected: set[int] = set()
        while True:
            # Each time: an actor of another run may have swept this one's folder, where nobody used it.
            await asyncio.to_thread(_make_private, self._folder)
            if await self._hold_cached(folder, manifest, rejected):
                break
            with opened(self._folder / LOCK_NAME, os.O_RDWR | os.O_CREAT) as lock:
                if await self._may_download(lock, folder, rejected):
                    await self._download(manifest, folder, download)
                    break
        return folder

    async def hold_in_place(self, place: Place, manifest: Manifest) -> Path | None:
        """Hold a version where its writer has put it, on this machine, instead of a copy; None where that is not safe.

        It is not where another user could change it or its way, where the folder is another one under the same name
        (its locks would not be seen), or where its bytes are not those of the manifest.
        """
        try:
            # For the mark of what was checked.
            await asyncio.to_thread(_make_private, self._folder)
            folder = place.folder.resolve(strict=True)
            found = folder.stat()
            is_safe = (found.st_dev, found.st_ino) == (place.device, place.inode) and _is_private(folder)
            if is_safe and await self._hold_cached(folder, manifest, set()):
                return folder
        except OSError as error:
            log.info("version %d is copied: %s", manifest.weights_version, error)
            return None
        log.info("version %d is copied: %s is not this learner's, or not safe", manifest.weights_version, place.folder)
        return None

    def report_progress(self) -> None:
        """A download goes on: other processes need not give up on this one."""
        os.utime(self._folder / LOCK_NAME)

    def prune(self, keep: Collection[int]) -> list[int]:
        """Let go of all versions but these, and remove those that no process of this machine uses.

        The files of one are set aside for the next download, where there is any to keep. Returns the versions removed.
        Freeing gigabytes takes a moment: call it in a thread.
        """
        for held in [held for held in self._held if held[0] not in keep]:
            let_go(self._held.pop(held))
        removed = []
        for version in versions(self._folder):
            folder = version_folder(self._folder, version)
            if version not in keep and discard_unused(folder, take_away=spare.set_aside):
                removed.append(version)
        if not keep:
            spare.remove(self._folder)
        prune_patches(self._folder)
        self._marks.prune(keep)
        return removed

    def bases(self) -> dict[int, Path]:
        """Folders of versions on this machine that a patch may be applied to copies of: cached ones and held ones."""
        cached = {version: version_folder(self._folder, version) for version in versions(self._folder)}
        return dict(self._held.keys()) | cached

    def close(self) -> None:
        """Let go of every version."""
        while self._held:
            let_go(self._held.popitem()[1])

    async def _hold_cached(self, folder: Path, manifest: Manifest, rejected: set[int]) -> bool:
        """Hold the version's folder if it is there and whole; one that is not is added to `rejected`."""
        if not self._hold(folder, manifest.weights_version):
            return False
        key = (manifest.weights_version, folder)
        inode = os.fstat(self._held[key]).st_ino
        try:
            is_whole = await self._marks.is_whole(folder, manifest)
        except OSError:
            is_whole = False
        # A folder that was exchanged meanwhile is not the one that is held.
        if is_whole and _inode(folder) == inode:
            return True
        let_go(self._held.pop(key))
        rejected.add(inode)
        return False

    def _hold(self, folder: Path, version: int) -> bool:
        """Lock a folder against removal, for as long as this process uses it."""
        descriptor = hold(folder)
        if descriptor is None:
            return False
        if (version, folder) in self._held:
            let_go(self._held[version, folder])
        self._held[version, folder] = descriptor
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
        is_swept = _inode(self._folder / LOCK_NAME) != os.fstat(lock).st_ino
        if is_ours and not is_swept and _inode(folder) in {None, *rejected}:
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
            return True
        await asyncio.sleep(POLL_SECONDS)
        return False

    async def _download(self, manifest: Manifest, folder: Path, download: Callable[[Path], Awaitable[None]]) -> None:
        """Bring a version in, whole and held; only under the download lock."""
        await asyncio.to_thread(remove_unfinished, self._folder)
        with unfinished_folder(self._folder) as writing:
            try:
                await download(writing)
            finally:
                # What it had no use for.
                await asyncio.to_thread(spare.remove, self._folder)
            (writing / MANIFEST_NAME).write_text(manifest.to_json())
            # Not fsynced: after the next boot every byte is checked before it is used.
            await asyncio.to_thread(self._marks.add, writing, manifest)
            # Held before it has its name, so that no other process can remove it in between.
            if not self._hold(writing, manifest.weights_version):
                raise UnusableError(f"{writing} cannot be locked; put the cache on another file system")
            await asyncio.to_thread(discard, folder)
            writing.rename(folder)
            self._held[manifest.weights_version, folder] = self._held.pop((manifest.weights_version, writing))


def sweep_siblings(folder: Path) -> list[Path]:
    """Remove what killed actors of other runs have left beside a cache folder; returns the folders removed.

    One that somebody may use stays: a process that holds a version, fetches one, has an engine's place there, or has
    just begun, and one that holds what no cache has.
    """
    removed = []
    for sibling in sorted(folder.parent.iterdir()) if folder.parent.is_dir() else []:
        try:
            if sibling != folder and sibling.lstat().st_uid == os.getuid() and _is_swept(sibling):
                removed.append(sibling)
        except OSError as error:
            log.info("%s stays: %s", sibling, error)
    return removed


def _is_swept(cache: Path) -> bool:
    if cache.is_symlink() or not cache.is_dir() or not all(map(_is_of_cache, cache.iterdir())):
        return False
    touched = [path.lstat().st_mtime for path in (cache, cache / LOCK_NAME) if path.exists()]
    if time.time() - max(touched) < JUST_BEGUN_SECONDS:
        return False
    with opened(cache / LOCK_NAME, os.O_RDWR | os.O_CREAT) as lock:
        if not has_lock(lock, fcntl.LOCK_EX) or not all(map(_is_free, cache.glob("engine-*"))):
            return False
        if not all(discard_unused(version_folder(cache, version)) for version in versions(cache)):
            return False
        shutil.rmtree(cache)
        return True


def _is_of_cache(path: Path) -> bool:
    is_named = path.name in (LOCK_NAME, MARKS_NAME, spare.SPARE_NAME, patches_folder(path.parent).name)
    return is_named or re.fullmatch(r"v\d{8,}|engine-\d+", path.name) is not None or path.name.startswith(UNFINISHED)


def _is_free(place: Path) -> bool:
    """Whether no engine process has locked its place."""
    if (held := hold(place)) is None:
        return False
    let_go(held)
    return True


def _make_private(folder: Path) -> None:
    """Make the cache folder and the user's own above it; either is refused where another user could write to it."""
    try:
        for path, owners in ((folder.parent, {os.getuid(), 0}), (folder, {os.getuid()})):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = path.lstat()
            if (owner := found.st_uid) not in owners:
                raise UnusableError(f"{path} belongs to user {owner}, not {os.getuid()}: weights there are not safe")
            is_sticky = path == folder.parent and found.st_mode & S_ISVTX
            if found.st_mode & OTHERS_WRITE and not is_sticky:
                raise UnusableError(f"others may write to {path}; run chmod go-w on it")
    except OSError as error:
        raise UnusableError(f"no folder for versions of the weights at {folder}: {error}") from error


def _is_private(folder: Path) -> bool:
    """Whether only this user, or root, can change a version or the way to it."""
    return all(
        stat.st_uid in (os.getuid(), 0) and (not stat.st_mode & OTHERS_WRITE or stat.st_mode & S_ISVTX)
        for stat in (path.stat() for path in (folder, *folder.parents))
    )


def _inode(folder: Path) -> int | None:
    try:
        return folder.stat().st_ino
    except FileNotFoundError:
        return None
