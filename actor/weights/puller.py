"""Fetches weights versions from a weight server, into a folder that all engine processes of a machine share."""

import asyncio
import shutil
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from actor.weights.cache import Place, WeightsCache
from actor.weights.silence import Silence
from dcpo_async.errors import PeerLostError, ProtocolError, RefusedError, WeightsError
from dcpo_async.protocol.messages import Envelope, Message, Reject
from dcpo_async.protocol.weight_messages import ChunkMessage, ChunkWant, ManifestMessage, ManifestWant
from dcpo_async.transport.interfaces import Dealer
from dcpo_async.weights.locks import machine_id
from dcpo_async.weights.manifest import Manifest

SENDS = 6
"""How often a request goes out before its peer counts as silent."""


class WeightPuller:
    """Fetches versions; exactly one process of a machine downloads, the others share."""

    def __init__(
        self,
        channel: Dealer,
        cache_folder: Path,
        run_id: str,
        chunk_bytes: int,
        credit: int = 8,
        timeout_seconds: float = 30.0,
        peer: str = "the weight server",
        *,
        in_place: bool = True,
    ) -> None:
        """Fetch nothing yet.

        Args:
            channel: to the weight server, for this puller alone.
            cache_folder: of this run alone, and of this user; made when it is needed.
            chunk_bytes: asked for at once.
            credit: chunks that may be asked for and not yet here.
            timeout_seconds: silence after which a fetch gives up; requests are repeated SENDS times within it.
            peer: what errors call the other end.
            in_place: versions that stand on this machine are used where they are, without a copy.
        """
        self._channel, self._run_id = channel, run_id
        # A process that downloads gives up after one time-out of silence; twice that leaves it time to let go.
        self._cache = WeightsCache(cache_folder, 2 * timeout_seconds)
        self._chunk_bytes, self._credit, self._timeout_seconds = chunk_bytes, credit, timeout_seconds
        self._peer, self._in_place = peer, in_place
        self._lost = ""
        self._one_at_a_time = asyncio.Lock()

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
            manifest, here = await self._ask_for_manifest(version)
            if here is not None and (folder := await self._cache.hold_in_place(here, manifest)) is not None:
                return folder, manifest
            return await self._cache.hold(manifest, lambda writing: self._download(manifest, writing)), manifest

    async def newest(self) -> Manifest:
        """The manifest of the newest version; raises as `fetch` does."""
        async with self._one_at_a_time:
            return (await self._ask_for_manifest(0))[0]

    def prune(self, keep: Collection[int]) -> list[int]:
        """Let go of all versions but these, and remove those that no process of this machine uses.

        Returns the versions removed. Freeing gigabytes takes a moment: call it in a thread.
        """
        return self._cache.prune(keep)

    def close(self) -> None:
        """Let go of every version; the channel stays open."""
        self._cache.close()

    # ---- the server

    async def _ask_for_manifest(self, version: int) -> tuple[Manifest, Place | None]:
        """A manifest, and where its version stands if that is on this machine."""
        # An answer that came too late for an earlier call would pass for this one's.
        while await self._channel.receive(0) is not None:
            continue
        silence = Silence(self._timeout_seconds)
        while True:
            await self._send(ManifestWant(weights_version=version))
            answer = await self._receive()
            if answer is not None and isinstance(answer.message, ManifestMessage):
                manifest = self._checked(answer.message)
                if version in (0, manifest.weights_version):
                    return manifest, self._place(answer.message)
            silence.check(self._named_peer())

    def _place(self, message: ManifestMessage) -> Place | None:
        is_here = self._in_place and message.folder.startswith("/") and "\0" not in message.folder
        if not is_here or not message.machine or message.machine != machine_id():
            return None
        return Place(Path(message.folder), message.device, message.inode)

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

    async def _download(self, manifest: Manifest, writing: Path) -> None:
        await asyncio.to_thread(_allocate, writing, manifest)
        await self._fetch_chunks(manifest, writing)

    async def _fetch_chunks(self, manifest: Manifest, writing: Path) -> None:
        """Write all files; what is lost on the way is asked for again."""
        wanted = deque(_chunks(manifest, self._chunk_bytes))
        asked: dict[tuple[str, int], ChunkWant] = {}
        silence = Silence(self._timeout_seconds)
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
                self._cache.report_progress()
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
    """Make all files at their full length; a version without room fails at once.

    Their pages are not filled: in shared memory that would touch every byte once more than the download does.
    """
    needed, disk = sum(entry.num_bytes for entry in manifest.files), shutil.disk_usage(folder)
    # A file system without a size of its own, such as ramfs, says 0 of everything.
    if disk.total and needed > disk.free:
        raise WeightsError(
            f"{folder.parent} has {disk.free} bytes free, version {manifest.weights_version} needs {needed}"
        )
    for entry in manifest.files:
        with (folder / entry.name).open("xb") as file:
            file.truncate(entry.num_bytes)


def _write(path: Path, offset: int, data: NDArray[np.uint8]) -> None:
    # Opened anew for each chunk: this runs in a thread, and a descriptor could be closed by a cancelled fetch
    # and belong to another file by then.
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data.data)
