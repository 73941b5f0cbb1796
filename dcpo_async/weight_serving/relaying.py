"""The relay service: hands on the stretches of a machine's cache, and those of its download as they come."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dcpo_async.errors import PeerLostError, ProtocolError, RevokedError, WeightsError
from dcpo_async.limits import quoted
from dcpo_async.protocol.messages import Envelope, Reject
from dcpo_async.protocol.weight_messages import ChunkMessage, ChunkWant
from dcpo_async.transport.interfaces import Received, Router
from dcpo_async.weight_serving.cache_shelf import CacheShelf

log = logging.getLogger("relay")

IDLE_SECONDS = 1.0
POLL_SECONDS = 0.02
"""How often it is looked for what others wait for; a level of the tree adds half of that, and a stretch's time."""
WORD_SECONDS = 1.0
"""How often whoever waits is told that this relay is well."""
GRACE_SECONDS = 2.0
"""For a version that is not here, or not yet in its place: this machine hears of it when the others do."""
STALLED_SECONDS = 20.0
"""A download that brings nothing for so long is not waited for; one that turns from a silent parent takes less."""
MAX_PARKED, MAX_PARKED_OF_PEER = 4096, 256
_NOTHING = np.empty(0, dtype=np.uint8)

_Key = tuple[bytes, int, str, int]


@dataclass(slots=True)
class _Parked:
    """A request that waits.

    Attributes:
        hopeful_until: answered with an error then; later while a download brings the file.
    """

    peer: bytes
    run_id: str
    want: ChunkWant
    hopeful_until: float


@dataclass(slots=True)
class _Run:
    """The cache of a run, and when anything came into it last."""

    shelf: CacheShelf
    progress: tuple[tuple[Path, int], ...] = ()
    moved_at: float = 0.0
    told_at: dict[bytes, float] = field(default_factory=dict)


class Relay:
    """Answers requests for stretches, at once or when the stretch has come.

    Args:
        channel: that other machines reach.
        folder_of: the cache folder of a run that may be handed on; None for any other.
    """

    def __init__(self, channel: Router, folder_of: Callable[[str], Path | None]) -> None:
        self._channel, self._folder_of = channel, folder_of
        self._clock = asyncio.get_running_loop().time
        self._runs: dict[str, _Run] = {}
        self._parked: dict[_Key, _Parked] = {}
        self._swept_at = self._clock()

    async def serve(self) -> None:
        """Answer until cancelled."""
        while True:
            waiting = await self._channel.receive(POLL_SECONDS if self._parked else IDLE_SECONDS)
            for received in waiting:
                try:
                    await self._take(received)
                except Exception as error:
                    # Whatever a request brings about is its peer's affair, and nobody else's.
                    log.exception("a request of %s could not be met", quoted(received.peer))
                    detail = f"{type(error).__name__}: {error}"
                    await self._send(received.peer, Envelope(Reject(reason="invalid", detail=detail)))
            if self._parked:
                await self._answer_parked()
            if self._clock() - self._swept_at >= IDLE_SECONDS:
                self._swept_at = self._clock()
                for run in self._runs.values():
                    run.shelf.drop_removed()
                    run.told_at = {peer: at for peer, at in run.told_at.items() if self._clock() - at < WORD_SECONDS}

    async def _take(self, received: Received) -> None:
        peer, envelope = received.peer, received.envelope
        if isinstance(envelope, RevokedError):
            self._parked = {key: parked for key, parked in self._parked.items() if parked.peer != peer}
        elif isinstance(envelope, ProtocolError):
            log.warning("refused a message of %s: %s", quoted(peer), quoted(envelope))
            await self._send(peer, Envelope(Reject(reason="invalid", detail=str(envelope))))
        elif not isinstance(envelope.message, ChunkWant):
            detail = f"a relay answers chunk_want, not {envelope.message.kind}; ask the weight server"
            await self._send(peer, Envelope(Reject(reason="invalid", detail=detail), run_id=envelope.run_id))
        else:
            want = envelope.message
            key = (peer, want.weights_version, want.file, want.offset)
            until = self._clock() + GRACE_SECONDS
            parked = self._parked.pop(key, None) or _Parked(peer, envelope.run_id, want, until)
            of_peer = sum(other.peer == peer for other in self._parked.values())
            if not await self._answer(parked, len(self._parked) < MAX_PARKED and of_peer < MAX_PARKED_OF_PEER):
                self._parked[key] = parked

    async def _answer_parked(self) -> None:
        for run in self._runs.values():
            run.shelf.look()
            if run.progress != (progress := run.shelf.progress()):
                run.progress, run.moved_at = progress, self._clock()
        for key, parked in list(self._parked.items()):
            if await self._answer(parked, may_wait=True):
                del self._parked[key]

    async def _answer(self, parked: _Parked, may_wait: bool) -> bool:
        """Send the stretch, or why it will not come; False where it may still come."""
        run, want, now = self._run(parked.run_id), parked.want, self._clock()
        if run is None:
            problem = f"run {parked.run_id!r} is not here"
            if may_wait and now < parked.hopeful_until:
                return False
        else:
            try:
                data = run.shelf.chunk(want)
            except WeightsError as error:
                await self._send(parked.peer, _chunk(parked, error=str(error)))
                return True
            if data is not None:
                await self._send(parked.peer, Envelope(_message(want), {"data": data}, parked.run_id))
                return True
            problem = f"{want.file} of version {want.weights_version} is not here"
            if run.shelf.is_fetched(want) and now - run.moved_at < STALLED_SECONDS:
                # Once its download is over, a version is nowhere for a moment, until it has its name.
                parked.hopeful_until = now + GRACE_SECONDS
            if may_wait and now < parked.hopeful_until:
                await self._say_later(run, parked, now)
                return False
        await self._send(parked.peer, _chunk(parked, error=problem))
        return True

    async def _say_later(self, run: _Run, parked: _Parked, now: float) -> None:
        """Tell each peer, now and then, that it waits for a stretch and not for this relay."""
        if now - run.told_at.get(parked.peer, now - WORD_SECONDS) >= WORD_SECONDS:
            run.told_at[parked.peer] = now
            await self._send(parked.peer, _chunk(parked, later=True))

    def _run(self, run_id: str) -> _Run | None:
        if run_id not in self._runs and (folder := self._folder_of(run_id)) is not None:
            self._runs[run_id] = _Run(CacheShelf(folder), moved_at=self._clock())
            self._runs[run_id].shelf.look()
        return self._runs.get(run_id)

    async def _send(self, peer: bytes, envelope: Envelope) -> None:
        try:
            await self._channel.send(peer, envelope)
        except PeerLostError as error:
            log.info("an answer is dropped, its peer will ask again: %s", error)


def _message(want: ChunkWant, *, later: bool = False, error: str = "") -> ChunkMessage:
    return ChunkMessage(
        weights_version=want.weights_version, file=want.file, offset=want.offset, later=later, error=error
    )


def _chunk(parked: _Parked, *, later: bool = False, error: str = "") -> Envelope:
    return Envelope(_message(parked.want, later=later, error=error), {"data": _NOTHING}, parked.run_id)
