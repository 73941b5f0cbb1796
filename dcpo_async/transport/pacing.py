"""Token buckets: a cap on what a router sends, for all peers together or for each; and on what it hears of each."""

import asyncio
import logging
import math
from collections import deque
from dataclasses import dataclass

from dcpo_async.errors import FloodError, PeerLostError
from dcpo_async.protocol.messages import Envelope
from dcpo_async.transport.interfaces import Received, Router

log = logging.getLogger(__name__)

BURST_OF_MESSAGES_SECONDS = 2.0
"""What one connection may say at once after a pause, as time at its full rate."""
TELL_SECONDS = 1.0
BURST_SECONDS = 0.1
"""What may be sent at once after a pause, as time at the full rate."""
QUEUED_MESSAGES = 256
"""Messages that wait for one peer before a sender counts it as lost."""


class Shares:
    """How many messages of each connection are looked at: a token bucket for each. Pure: seconds go in.

    A connection that has said nothing for so long that its bucket is full again is forgotten.

    Args:
        per_second: messages of one connection; inf takes all.
    """

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._buckets: dict[bytes, _Bucket] = {}
        self._swept_at = 0.0

    @property
    def num_connections(self) -> int:
        """Those whose buckets are kept."""
        return len(self._buckets)

    def take(self, connection: bytes, now: float) -> bool | FloodError:
        """Whether a message is looked at; once a second a FloodError says how many were not."""
        if math.isinf(self._per_second):
            return True
        if now - self._swept_at > BURST_OF_MESSAGES_SECONDS:
            self._sweep(now)
        bucket = self._buckets.get(connection)
        if bucket is None:
            bucket = self._buckets[connection] = _Bucket(self._per_second * BURST_OF_MESSAGES_SECONDS, now, now)
        room = bucket.tokens + (now - bucket.at) * self._per_second
        bucket.tokens, bucket.at = min(room, self._per_second * BURST_OF_MESSAGES_SECONDS), now
        if bucket.tokens >= 1:
            bucket.tokens -= 1
            return True
        bucket.num_dropped += 1
        if now - bucket.told_at < TELL_SECONDS:
            return False
        num_dropped, bucket.num_dropped, bucket.told_at = bucket.num_dropped, 0, now
        text = f"{num_dropped} messages were dropped, over {self._per_second:g} a second from one connection"
        return FloodError(text, num_dropped=num_dropped)

    def _sweep(self, now: float) -> None:
        self._swept_at = now
        kept = (item for item in self._buckets.items() if now - item[1].at <= BURST_OF_MESSAGES_SECONDS)
        self._buckets = dict(kept)


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float
    told_at: float
    num_dropped: int = 0


class PacedRouter:
    """Sends each peer its messages in their order, no sooner than a link of this rate would have carried them.

    Peers that share the rate take turns, so that none waits for all that another has asked for.

    Args:
        inner: does the sending; closed with this one.
        bytes_per_second: of the messages' arrays; headers are not counted.
        per_peer: the rate is that of each peer's link, not of all together.
    """

    def __init__(self, inner: Router, bytes_per_second: float, *, per_peer: bool = False) -> None:
        self._inner, self._bytes_per_second, self._per_peer = inner, bytes_per_second, per_peer
        self.refusals = inner.refusals
        self._waiting: dict[bytes, dict[bytes, deque[Envelope]]] = {}
        self._sending: dict[bytes, asyncio.Task[None]] = {}
        self._free_at: dict[bytes, float] = {}

    @property
    def port(self) -> int:
        """TCP port that is listened on."""
        return self._inner.port

    async def receive(self, timeout_seconds: float) -> list[Received]:
        """Everything that waits; empty when nothing came within the timeout."""
        return await self._inner.receive(timeout_seconds)

    async def send(self, peer: bytes, envelope: Envelope) -> None:
        """Send when the rate allows; raises PeerLostError where too much waits already."""
        link = peer if self._per_peer else b""
        waiting = self._waiting.setdefault(link, {})
        queue = waiting.setdefault(peer, deque())
        if len(queue) >= QUEUED_MESSAGES:
            raise PeerLostError(f"{QUEUED_MESSAGES} messages wait for peer {peer!r}: its link is too slow for them")
        queue.append(envelope)
        if link not in self._sending:
            self._sending[link] = asyncio.create_task(self._drain(link, waiting))

    def close(self) -> None:
        """Let go of the address and every peer; what waits is not sent."""
        for task in self._sending.values():
            task.cancel()
        self._inner.close()

    async def _drain(self, link: bytes, waiting: dict[bytes, deque[Envelope]]) -> None:
        loop = asyncio.get_running_loop()
        try:
            while waiting:
                peer = next(iter(waiting))
                queue = waiting.pop(peer)
                envelope = queue.popleft()
                if queue:
                    # To the end of the line.
                    waiting[peer] = queue
                num_bytes = sum(array.nbytes for array in envelope.arrays.values())
                started = max(self._free_at.get(link, 0.0), loop.time() - BURST_SECONDS)
                self._free_at[link] = started + num_bytes / self._bytes_per_second
                await asyncio.sleep(self._free_at[link] - loop.time())
                try:
                    await self._inner.send(peer, envelope)
                except PeerLostError as error:
                    log.debug("an answer is dropped, the peer will ask again: %s", error)
        finally:
            del self._sending[link], self._waiting[link]
            # Peers come and go; one that is back after a pause has its burst anyway.
            if loop.time() - self._free_at.get(link, 0.0) > BURST_SECONDS:
                self._free_at.pop(link, None)
