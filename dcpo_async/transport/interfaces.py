"""What a channel is, whether it runs over ZeroMQ or in memory."""

from dataclasses import dataclass
from typing import Protocol

from dcpo_async.errors import ProtocolError
from dcpo_async.limits import Refusals
from dcpo_async.protocol.messages import Envelope
from dcpo_async.transport.admission import KeyHolder


@dataclass(frozen=True, slots=True)
class Received:
    """What came from one peer.

    Attributes:
        peer: its connection, over which it can be answered.
        envelope: the message, or what was wrong with it.
        holder: whose key it has shown; None where no keys are used.
    """

    peer: bytes
    envelope: Envelope | ProtocolError
    holder: KeyHolder | None = None


class Router(Protocol):
    """The end that many peers talk to.

    Attributes:
        refusals: who was turned away, by this end or by whoever reads from it.
    """

    refusals: Refusals

    @property
    def port(self) -> int:
        """TCP port that is listened on; 0 where there is none."""

    async def receive(self, timeout_seconds: float) -> list[Received]:
        """Everything that waits, up to a bound; empty when nothing came within the timeout."""

    async def send(self, peer: bytes, envelope: Envelope) -> None:
        """Send without waiting; raises PeerLostError when the peer is gone or its queue is full."""

    def close(self) -> None:
        """Let go of the address and every peer."""


class Dealer(Protocol):
    """The end that talks to one router; it connects, and connects again, on its own."""

    async def receive(self, timeout_seconds: float) -> Envelope | None:
        """The next message, None when none came within the timeout; raises ProtocolError."""

    async def send(self, envelope: Envelope) -> None:
        """Send; raises PeerLostError when the message cannot leave within the channel's deadline."""

    def close(self) -> None:
        """Let go of the router."""
