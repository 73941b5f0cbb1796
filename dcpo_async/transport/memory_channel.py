"""Channels within one process, through the real codec; they can lose, double and reorder messages."""

import asyncio
import random
from collections import deque

from dcpo_async.errors import PeerLostError, ProtocolError
from dcpo_async.limits import Refusals
from dcpo_async.protocol.codec import Frame, decode, encode
from dcpo_async.protocol.messages import Envelope
from dcpo_async.transport.interfaces import Received

QUEUED_MESSAGES = 256
"""Messages that wait at one end before a sender counts it as lost."""

_Packet = tuple[bytes, list[Frame]]


class Faults:
    """Decides the fate of each message from a seed, so that a failing run can be repeated.

    A reordered message waits until the next one to its receiver has passed it; if none follows, it is lost.
    """

    def __init__(self, seed: int = 0, loss: float = 0.0, duplication: float = 0.0, reordering: float = 0.0) -> None:
        """Set the probability of each fate; they are drawn one after another, loss first."""
        self.loss, self.duplication, self.reordering = loss, duplication, reordering
        self._random = random.Random(seed)

    def arrivals(self, packet: _Packet, withheld: list[_Packet]) -> list[_Packet]:
        """The packets that reach a receiver now that this one is sent; `withheld` keeps its late ones."""
        if self._random.random() < self.loss:
            return []
        copies = [packet] * (2 if self._random.random() < self.duplication else 1)
        if self._random.random() < self.reordering:
            withheld.extend(copies)
            return []
        late = withheld.copy()
        withheld.clear()
        return copies + late


class _Inbox:
    """Packets that wait for one end."""

    def __init__(self) -> None:
        self.packets: deque[_Packet] = deque()
        self.withheld: list[_Packet] = []
        self._has_packets = asyncio.Event()

    def put(self, packets: list[_Packet]) -> None:
        self.packets.extend(packets)
        if self.packets:
            self._has_packets.set()

    async def wait(self, timeout_seconds: float) -> bool:
        if not self.packets:
            self._has_packets.clear()
            try:
                # Unlike wait_for, which in Python 3.11 forgets a cancellation that meets the end of its wait.
                async with asyncio.timeout(timeout_seconds):
                    await self._has_packets.wait()
            except TimeoutError:
                return False
        return True


class MemoryNetwork:
    """A router and its dealers; a new router takes the place of the old, a new dealer of its identity's."""

    def __init__(self, max_message_bytes: int = 1 << 30, faults: Faults | None = None) -> None:
        """Start without a router and without faults."""
        self.max_message_bytes = max_message_bytes
        self.faults = faults or Faults()
        self.router_inbox: _Inbox | None = None
        self.dealer_inboxes: dict[bytes, _Inbox] = {}

    def router(self) -> "MemoryRouter":
        """Open the listening end; what waited at an earlier one is gone."""
        return MemoryRouter(self)

    def dealer(self, identity: bytes) -> "MemoryDealer":
        """Open a connecting end; what waited for an earlier one of this identity is gone."""
        return MemoryDealer(self, identity)

    def carry(self, inbox: _Inbox, packet: _Packet) -> None:
        """Bring a packet to an inbox, as the faults will have it."""
        inbox.put(self.faults.arrivals(packet, inbox.withheld))


class MemoryRouter:
    """The listening end in memory."""

    port = 0

    def __init__(self, network: MemoryNetwork) -> None:
        """Take the router's place in the network."""
        self._network = network
        self._inbox = network.router_inbox = _Inbox()
        self.refusals = Refusals()

    async def receive(self, timeout_seconds: float) -> list[Received]:
        """Everything that waits; empty when nothing came within the timeout."""
        await self._inbox.wait(timeout_seconds)
        packets = list(self._inbox.packets)
        self._inbox.packets.clear()
        return [Received(peer, self._decoded(frames)) for peer, frames in packets]

    async def send(self, peer: bytes, envelope: Envelope) -> None:
        """Send without waiting; raises PeerLostError when the peer is gone or its inbox is full."""
        inbox = self._network.dealer_inboxes.get(peer)
        if inbox is None:
            raise PeerLostError(f"peer {peer!r} is not connected")
        if len(inbox.packets) >= QUEUED_MESSAGES:
            raise PeerLostError(f"{QUEUED_MESSAGES} messages wait for peer {peer!r}: it reads none")
        self._network.carry(inbox, (peer, encode(envelope)))

    def close(self) -> None:
        """Leave the network, unless another router has taken the place."""
        if self._network.router_inbox is self._inbox:
            self._network.router_inbox = None

    def _decoded(self, frames: list[Frame]) -> Envelope | ProtocolError:
        try:
            return decode(frames, self._network.max_message_bytes)
        except ProtocolError as error:
            return error


class MemoryDealer:
    """The connecting end in memory."""

    def __init__(self, network: MemoryNetwork, identity: bytes) -> None:
        """Join the network under an identity."""
        self._network, self._identity = network, identity
        self._inbox = network.dealer_inboxes[identity] = _Inbox()

    async def receive(self, timeout_seconds: float) -> Envelope | None:
        """The next message; None when none came within the timeout; raises ProtocolError."""
        if not await self._inbox.wait(timeout_seconds):
            return None
        _, frames = self._inbox.packets.popleft()
        return decode(frames, self._network.max_message_bytes)

    async def send(self, envelope: Envelope) -> None:
        """Send; raises PeerLostError when there is no router or its inbox is full."""
        inbox = self._network.router_inbox
        if inbox is None:
            raise PeerLostError("no router is open in this network")
        if len(inbox.packets) >= QUEUED_MESSAGES:
            raise PeerLostError(f"{QUEUED_MESSAGES} messages wait for the router: it reads none")
        self._network.carry(inbox, (self._identity, encode(envelope)))

    def close(self) -> None:
        """Leave the network, unless another dealer has taken the identity over."""
        if self._network.dealer_inboxes.get(self._identity) is self._inbox:
            del self._network.dealer_inboxes[self._identity]
