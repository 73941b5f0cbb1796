"""A cap on what a router sends: a token bucket for all peers together, or one for each."""

import asyncio
import logging
from collections import deque

from dcpo_async.errors import PeerLostError
from dcpo_async.protocol.messages import Envelope
from dcpo_async.transport.interfaces import Received, Router

log = logging.getLogger(__name__)

BURST_SECONDS = 0.1
"""What may be sent at once after a pause, as time at the full rate."""
QUEUED_MESSAGES = 256
"""Messages that wait for one peer before a sender counts it as lost."""


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
