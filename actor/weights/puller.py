"""Fetches weights versions into a folder that all engine processes of a machine share."""

import asyncio
import fcntl
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcpo_async.errors import PeerLostError, ProtocolError, RefusedError, WeightsError
from dcpo_async.protocol.messages import (
    ChunkMessage,
    ChunkWant,
    Envelope,
    ManifestMessage,
    ManifestWant,
    Message,
    Reject,
)
from dcpo_async.transport.interfaces import Dealer
from dcpo_async.weights.manifest import MANIFEST_NAME, Manifest
from dcpo_async.weights.store import (
    discard,
    remove_unfinished,
    unfinished_folder,
    verify,
    version_folder,
    versions,
)

SENDS = 6
"""How often a request goes out before its peer counts as silent."""
LOCK_NAME = ".fetch.lock"
POLL_SECONDS = 0.05
MIN_MEMORY_BYTES = 1 << 30


def default_cache_folder(run_id: str) -> Path:
    """In shared memory where there is some, else in the system's temporary folder; raises WeightsError."""
    if Path(run_id).name != run_id or run_id in ("", ".."):
        raise WeightsError(f"run id {run_id!r} cannot name a folder")
    memory = Path("/dev/shm")
    # A container's default of 64 MiB holds no model.
    is_usable = os.access(memory, os.W_OK) and shutil.disk_usage(memory).total >= MIN_MEMORY_BYTES
    parent = memory if is_usable else Path(tempfile.gettempdir())
    return parent / f"dcpo-{os.getuid()}" / run_id


class WeightPuller:
    """Fetches versions from a weight server; exactly one process of a machine downloads, the others share.

    A version's folder is locked (flock, shared) while a process uses it. The kernel drops the locks of a process that
    dies, whatever it was doing. The download lock's modification time is the heartbeat of its holder.
    """

    def __init__(
        self,
        channel: Dealer,
        cache_folder: Path,
        run_id: str,
        chunk_bytes: int,
        credit: int = 8,
        timeout_seconds: float = 30.0,
        peer: str = "the weight server",
    ) -> None:
        """Fetch nothing yet.

        Args:
            channel: to the weight server, for this puller alone.
            cache_folder: of this run alone, and of this user; made when it is needed.
            chunk_bytes: asked for at once.
            credit: chunks that may be asked for and not yet here.
            timeout_seconds: silence after which a fetch gives up; requests are repeated SENDS times within it.
            peer: what errors call the other end.
        """
        self._channel, self._cache_folder, self._run_id = channel, cache_folder, run_id
        self._chunk_bytes, self._credit, self._timeout_seconds = chunk_bytes, credit, timeout_seconds
        self._peer = peer
        self._lost = ""
        self._one_at_a_time = asyncio.Lock()
        self._held: dict[int, int] = {}

    async def fetch(self, version: int = 0) -> tuple[Path, Manifest]:
        """The folder of a version, every byte checked, and its manifest; it stays until `prune` or `close`.

        Args:
            version: 0 for the newest.

        Raises:
            WeightsError: there is no such version, its bytes do not match, there is no room for it, or the server
                or the process that downloads it fell silent; asking again later may help.
            RefusedError: the server serves another run.
            ProtocolError: the server sent something that the protocol does not allow.
        """
        async with self._one_at_a_time:
            manifest = await self._ask_for_manifest(version)
            await asyncio.to_thread(_make_private, self._cache_folder)
            folder = version_folder(self._cache_folder, manifest.weights_version)
            rejected: set[int] = set()
            while not await self._hold_cached(folder, manifest, rejected):
                with _opened(self._cache_folder / LOCK_NAME, os.O_RDWR | os.O_CREAT) as lock:
                    if await self._may_download(lock, folder, rejected):
                        await self._download(manifest, folder)
                        break
            return folder, manifest

    async def newest(self) -> Manifest:
        """The manifest of the newest version; raises as `fetch` does."""
        async with self._one_at_a_time:
            return await self._ask_for_manifest(0)

    def prune(self, keep: Collection[int]) -> list[int]:
        """Let go of all versions but these, and remove those that no process of this machine uses.

        Returns the versions removed. Freeing gigabytes takes a moment: call it in a thread.
        """
        for version in [held for held in self._held if held not in keep]:
            _let_go(self._held.pop(version))
        removed = []
        for version in versions(self._cache_folder):
            folder = version_folder(self._cache_folder, version)
            if version not in keep and _discard_unused(folder):
                removed.append(version)
        return removed

    def close(self) -> None:
        """Let go of every version; the channel stays open."""
        while self._held:
            _let_go(self._held.popitem()[1])

    # ---- the shared folder

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
        _let_go(self._held.pop(manifest.weights_version))
        rejected.add(inode)
        return False

    def _hold(self, folder: Path, version: int) -> bool:
        """Lock a folder against removal, for as long as this process uses it."""
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return False
        if not _has_lock(descriptor, fcntl.LOCK_SH):
            os.close(descriptor)
            return False
        if version in self._held:
            _let_go(self._held[version])
        self._held[version] = descriptor
        return True

    async def _may_download(self, lock: int, folder: Path, rejected: set[int]) -> bool:
        """Wait for the download lock; False once another process has brought the version in."""
        # The holder gives up after one time-out of silence; twice that leaves it time to let go.
        silence = _Silence(2 * self._timeout_seconds)
        heartbeat = os.fstat(lock).st_mtime_ns
        while not (has_lock := _has_lock(lock, fcntl.LOCK_EX)) and _inode(folder) in {None, *rejected}:
            await asyncio.sleep(POLL_SECONDS)
            if heartbeat != (heartbeat := os.fstat(lock).st_mtime_ns):
                silence.broken()
            holder = os.pread(lock, 20, 0).decode(errors="replace").strip()
            silence.check(f"process {holder} of this machine, which fetches weights to {folder.parent},")
        if has_lock and _inode(folder) in {None, *rejected}:
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
            return True
        await asyncio.sleep(POLL_SECONDS)
        return False

    def _report_progress(self) -> None:
        os.utime(self._cache_folder / LOCK_NAME)

    # ---- the server

    async def _ask_for_manifest(self, version: int) -> Manifest:
        # An answer that came too late for an earlier call would pass for this one's.
        while await self._channel.receive(0) is not None:
            continue
        silence = _Silence(self._timeout_seconds)
        while True:
            await self._send(ManifestWant(weights_version=version))
            answer = await self._receive()
            if answer is not None and isinstance(answer.message, ManifestMessage):
                manifest = self._checked(answer.message)
                if version in (0, manifest.weights_version):
                    return manifest
            silence.check(self._named_peer())

    def _checked(self, message: ManifestMessage) -> Manifest:
        if message.error:
            raise WeightsError(f"{self._peer}: {message.error}")
        manifest = Manifest.from_json(message.manifest_json)
        if manifest.run_id != self._run_id or manifest.weights_version != message.weights_version:
            raise WeightsError(
                f"asked for version {message.weights_version} of run {self._run_id}, {self._peer} has version "
                f"{manifest.weights_version} of run {manifest.run_id}"
            )
        if manifest.base_version is not None:
            raise WeightsError(f"version {manifest.weights_version} is a patch; this actor needs full snapshots")
        return manifest

    async def _download(self, manifest: Manifest, folder: Path) -> None:
        """Bring a version in, whole and held; only under the download lock."""
        await asyncio.to_thread(remove_unfinished, self._cache_folder)
        with unfinished_folder(self._cache_folder) as writing:
            await asyncio.to_thread(_allocate, writing, manifest)
            await self._fetch_chunks(manifest, writing)
            (writing / MANIFEST_NAME).write_text(manifest.to_json())
            # Not fsynced: what a power failure leaves is checked before it is used.
            await asyncio.to_thread(verify, writing, self._report_progress)
            # Held before it has its name, so that no other process can remove it in between.
            self._hold(writing, manifest.weights_version)
            await asyncio.to_thread(discard, folder)
            writing.rename(folder)

    async def _fetch_chunks(self, manifest: Manifest, writing: Path) -> None:
        """Write all files; what is lost on the way is asked for again."""
        wanted = deque(_chunks(manifest, self._chunk_bytes))
        asked: dict[tuple[str, int], ChunkWant] = {}
        silence = _Silence(self._timeout_seconds)
        while wanted or asked:
            while wanted and len(asked) < self._credit and await self._send(wanted[0]):
                want = wanted.popleft()
                asked[want.file, want.offset] = want
            answer = await self._receive()
            if answer is None:
                wanted.extendleft(reversed(asked.values()))
                asked.clear()
            elif (met := self._accepted(answer, manifest, asked)) is not None:
                await asyncio.to_thread(_write, writing / met.file, met.offset, answer.arrays["data"])
                del asked[met.file, met.offset]
                self._report_progress()
                silence.broken()
            silence.check(self._named_peer())

    def _accepted(
        self, answer: Envelope, manifest: Manifest, asked: Mapping[tuple[str, int], ChunkWant]
    ) -> ChunkWant | None:
        """The request that this answers; None for what was not asked for, or is here already."""
        message = answer.message
        if not isinstance(message, ChunkMessage) or message.weights_version != manifest.weights_version:
            return None
        want = asked.get((message.file, message.offset))
        if want is None:
            return None
        if message.error:
            raise WeightsError(f"{self._peer}: {message.error}")
        if len(answer.arrays["data"]) != want.num_bytes:
            raise WeightsError(
                f"{self._peer} sent {len(answer.arrays['data'])} bytes of {want.file} from {want.offset} on, "
                f"asked for {want.num_bytes}"
            )
        return want

    async def _send(self, message: Message) -> bool:
        """Whether the request left; when not, the channel is still trying to connect."""
        try:
            await self._channel.send(Envelope(message, run_id=self._run_id))
        except PeerLostError as error:
            self._lost = f" ({error})"
            return False
        self._lost = ""
        return True

    async def _receive(self) -> Envelope | None:
        answer = await self._channel.receive(self._timeout_seconds / SENDS)
        if answer is not None and isinstance(answer.message, Reject):
            is_final = answer.message.reason in ("run_id", "protocol_version")
            raise (RefusedError if is_final else ProtocolError)(f"{self._peer}: {answer.message.detail}")
        return answer

    def _named_peer(self) -> str:
        return f"{self._peer} of run {self._run_id}{self._lost}"


class _Silence:
    """Ends a wait once nothing has been heard for too long."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.broken()

    def broken(self) -> None:
        """Something was heard."""
        self._ends = time.monotonic() + self._seconds

    def check(self, peer: str) -> None:
        """Raise WeightsError, naming the peer, once it is over."""
        if time.monotonic() > self._ends:
            raise WeightsError(f"{peer} made no progress for {self._seconds:g} s; try again, or restart it")


def _chunks(manifest: Manifest, chunk_bytes: int) -> Iterator[ChunkWant]:
    for entry in manifest.files:
        for offset in range(0, entry.num_bytes, chunk_bytes):
            yield ChunkWant(
                weights_version=manifest.weights_version,
                file=entry.name,
                offset=offset,
                num_bytes=min(chunk_bytes, entry.num_bytes - offset),
            )


def _allocate(folder: Path, manifest: Manifest) -> None:
    """Make all files at their full length, so that a version without room fails at once."""
    for entry in manifest.files:
        with (folder / entry.name).open("xb") as file:
            if entry.num_bytes:
                os.posix_fallocate(file.fileno(), 0, entry.num_bytes)


def _write(path: Path, offset: int, data: NDArray[np.uint8]) -> None:
    # Opened anew for each chunk: this runs in a thread, and a descriptor could be closed by a cancelled fetch
    # and belong to another file by then.
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data.data)


def _make_private(folder: Path) -> None:
    """Make the cache folder; one that another user could write to is refused."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path, owners in ((folder, {os.getuid()}), (folder.parent, {os.getuid(), 0})):
        if (owner := path.lstat().st_uid) not in owners:
            raise WeightsError(f"{path} belongs to user {owner}, not {os.getuid()}: weights there are not safe")
    if folder.stat().st_mode & 0o022:
        raise WeightsError(f"others may write to {folder}; run chmod go-w on it")


def _discard_unused(folder: Path) -> bool:
    """Remove a version's folder unless some process holds it."""
    try:
        with _opened(folder, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
            if not _has_lock(descriptor, fcntl.LOCK_EX):
                return False
            discard(folder)
            return True
    except FileNotFoundError:
        return False


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """A file descriptor; closing it drops its lock."""
    descriptor = os.open(path, flags, 0o600)
    try:
        yield descriptor
    finally:
        _let_go(descriptor)


def _let_go(descriptor: int) -> None:
    """Unlock and close; a lock that is only closed would live on in a forked child."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _has_lock(descriptor: int, kind: int) -> bool:
    """Try to lock without waiting."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _inode(folder: Path) -> int | None:
    try:
        return folder.stat().st_ino
    except FileNotFoundError:
        return None
