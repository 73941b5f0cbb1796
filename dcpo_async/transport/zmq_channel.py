"""Envelopes over ZeroMQ. The only importer of zmq, so every ZeroMQ error is translated here."""

import asyncio
import errno
import math
import time
from collections.abc import Callable, Sequence

import zmq
import zmq.asyncio

from dcpo_async.errors import ConfigError, FloodError, PeerLostError, ProtocolError, RevokedError
from dcpo_async.limits import (
    GROUP_HEADER_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_PEERS,
    MESSAGES_PER_SECOND,
    REQUESTS_PER_SECOND,
    SMALL_HEADER_BYTES,
    Refusals,
)
from dcpo_async.protocol.codec import PREVIOUS_VERSION, SPOKEN_WITH_ACTORS, Frame, decode, encode, spoken_version
from dcpo_async.protocol.messages import PROTOCOL_VERSION, Envelope
from dcpo_async.transport.connections import Connections, raise_descriptor_limit
from dcpo_async.transport.gate import Gate
from dcpo_async.transport.interfaces import Received
from dcpo_async.transport.key_files import CurveClient, CurveServer, Pair, for_relay
from dcpo_async.transport.pacing import Shares
from dcpo_async.transport.security import check_address

MAX_RECEIVED = 256
"""Messages handed over at once; the caller's other duties wait no longer than these take."""
MAX_READ = 4 * MAX_RECEIVED
"""Messages read at once, those included that are over their connection's share."""
QUEUED_MESSAGES = 256
"""Messages that wait for one peer before it counts as lost."""
MAX_REMEMBERED = 4 * MAX_PEERS
"""Connections of which it is known that they speak an older version; not all of them need be open still."""
LINGER_MS = 500
KEEPALIVE_SECONDS, KEEPALIVE_PROBES = 5, 3
"""A machine that answers nothing is noticed after four times as long, by the kernel: never by libzmq's own pings, which
end the process (an assertion in 4.3.5) where a peer vanishes whose messages wait (docs/decisions/0034)."""
HANDSHAKE_MS = 10_000
LOOK_SECONDS = 0.5


class RouterChannel:
    """The listening end; open it inside a running event loop, and close it after the last receive."""

    def __init__(
        self,
        address: str,
        max_message_bytes: int,
        curve: CurveServer | None = None,
        *,
        insecure: bool = False,
        max_received_bytes: int = MAX_MESSAGE_BYTES,
        max_header_bytes: int = MAX_MESSAGE_BYTES,
        max_connections: int | None = None,
        messages_per_second: float = math.inf,
        versions: Sequence[int] = (PROTOCOL_VERSION,),
    ) -> None:
        """Listen.

        Args:
            address: tcp://host:port or ipc://path; port 0 takes any free one.
            max_message_bytes: larger messages are refused; a single frame of that size ends its connection.
            curve: keys; only peers whose key `curve.admission` lets in get a message through, as long as it does.
            insecure: allow an address off this machine without keys.
            max_received_bytes: those that peers send may be smaller by agreement than those that are sent.
            max_connections: over TCP; none is as many as this process may have descriptors for.
            max_header_bytes: larger headers are refused before they are unpacked.
            messages_per_second: of one connection; what is more is dropped, and told once a second as a FloodError.
            versions: of the protocol that are spoken here; each peer is answered in the one that it spoke last.

        Raises:
            ConfigError: the address is malformed, taken, not ours, or needs keys.
        """
        check_address(address, curve is not None, insecure)
        self._max_message_bytes, self._max_header_bytes = max_message_bytes, max_header_bytes
        self._max_received_bytes = min(max_message_bytes, max_received_bytes)
        self._looked_at, self.refusals = 0.0, Refusals()
        self._shares = Shares(messages_per_second)
        self._versions, self._spoken = versions, dict[bytes, int]()
        self._context = zmq.asyncio.Context()
        self._socket = _socket(self._context, zmq.ROUTER, self._max_received_bytes, address)
        # Each connection is a peer of its own, named by this socket: no other can take it over.
        self._socket.router_mandatory = True
        self._gate = Gate(self._socket, curve, self.refusals) if curve else None
        self._connections: Connections | None = None
        if self._gate or address.startswith("tcp:"):
            room = raise_descriptor_limit()
            failed = self._gate.failed if self._gate else lambda problem: None
            self._connections = Connections(
                self._socket, room if max_connections is None else max_connections, failed=failed
            )
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(_bind_problem(address, error)) from None
        self._endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")

    @property
    def port(self) -> int:
        """TCP port that is listened on; 0 for ipc."""
        return int(self._endpoint.rpartition(":")[2]) if self._endpoint.startswith("tcp://") else 0

    async def receive(self, timeout_seconds: float) -> list[Received]:
        """Everything that waits, at most MAX_RECEIVED; empty when nothing came within the timeout.

        A RevokedError is the last that is heard of a connection: its key is not admitted any more, and it is closed.
        """
        received, until = await self._waiting(), time.monotonic() + timeout_seconds
        while not received and (left := until - time.monotonic()) > 0:
            if await self._socket.poll(math.ceil(min(left, LOOK_SECONDS) * 1000)):
                return await self._waiting()
            received = self._look()
        return received

    async def send(self, peer: bytes, envelope: Envelope) -> None:
        """Send without waiting.

        Raises:
            PeerLostError: no such peer is connected, or QUEUED_MESSAGES wait for it already.
        """
        frames = _frames(envelope, self._max_message_bytes, self._spoken.get(peer, PROTOCOL_VERSION))
        try:
            await self._socket.send_multipart([peer, *frames], zmq.NOBLOCK, copy=False)
        except zmq.Again:
            raise PeerLostError(f"{QUEUED_MESSAGES} messages wait for it and it reads none") from None
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise
            raise PeerLostError("its connection is gone") from None

    def close(self) -> None:
        """Let go of the address; what is queued has half a second to leave."""
        if self._gate:
            self._gate.stop()
        if self._connections:
            self._connections.stop()
        self._context.destroy()

    def _look(self) -> list[Received]:
        """See to the connections, once in a while; returns those that were closed for their keys."""
        if self._connections is None or time.monotonic() - self._looked_at < LOOK_SECONDS:
            return []
        self._looked_at = time.monotonic()
        self._connections.look()
        if self._gate is None or not self._gate.has_changed():
            return []
        admission, revoked = self._gate.admission, list[Received]()
        for (connection, holder), address in self._connections.close_where(
            lambda speaker: speaker[1] is not None and admission.holder_of(speaker[1].key) != speaker[1]
        ):
            assert holder is not None
            self._gate.closed(holder, address)
            error = RevokedError(f"the key of {holder.role} {holder.name} is no longer admitted")
            revoked.append(Received(connection, error, holder))
        return revoked

    async def _waiting(self) -> list[Received]:
        received = self._look()
        # Nothing below waits while messages come in: the loop's other parts get their turn here.
        await asyncio.sleep(0)
        # Those that are dropped count too: a flood of them must not keep the caller from what it has got.
        for _ in range(MAX_READ):
            message = await _waiting_message(self._socket) if len(received) < MAX_RECEIVED else []
            if not message:
                break
            peer, *frames = message
            connection, holder = peer.bytes, None
            if self._gate and (holder := self._gate.holder_of(message[-1])) is None:
                continue
            if self._connections:
                try:
                    self._connections.heard(message[-1].get(zmq.SRCFD), (connection, holder))
                except zmq.ZMQError:
                    # A peer of ZMTP 1 or 2, which names no connection: nobody of ours, such as a browser.
                    continue
            match self._shares.take(connection, time.monotonic()):
                case True:
                    received.append(Received(connection, self._decoded(connection, frames), holder))
                case FloodError() as flood:
                    received.append(Received(connection, flood, holder))
        return received

    def _decoded(self, connection: bytes, frames: Sequence[zmq.Frame]) -> Envelope | ProtocolError:
        views = [frame.buffer for frame in frames]
        try:
            envelope = decode(views, self._max_received_bytes, self._max_header_bytes, self._versions)
            self._note(connection, envelope.version)
            return envelope
        except ProtocolError as error:
            # It is told so in words that it can read.
            self._note(connection, spoken_version(views))
            # Its frames would keep alive all that was received with it, wherever one of these errors is remembered.
            error.__cause__ = error.__context__ = None
            return error.with_traceback(None)

    def _note(self, connection: bytes, version: int) -> None:
        """Note which version a peer is to be answered in, where that is not this release's own."""
        if version not in self._versions:
            return
        self._spoken.pop(connection, None)
        if version == PROTOCOL_VERSION:
            return
        if len(self._spoken) >= MAX_REMEMBERED:
            del self._spoken[next(iter(self._spoken))]
        # To the end: those that have said nothing for the longest are forgotten first.
        self._spoken[connection] = version


class DealerChannel:
    """The connecting end; it connects again on its own, and nothing is queued while it is not connected."""

    def __init__(
        self,
        address: str,
        max_message_bytes: int,
        curve: CurveClient | None = None,
        *,
        insecure: bool = False,
        send_timeout_seconds: float = 5.0,
        version: int = PROTOCOL_VERSION,
    ) -> None:
        """Begin to connect; whether anybody listens shows in the first answer.

        Args:
            address: tcp://host:port or ipc://path.
            max_message_bytes: larger messages are refused.
            curve: keys of this side and of the router.
            insecure: allow an address off this machine without keys.
            send_timeout_seconds: how long a send waits for a connection and room in its queue.
            version: of the protocol that is spoken here.

        Raises:
            ConfigError: the address is malformed, or needs keys.
        """
        check_address(address, curve is not None, insecure)
        self._address, self._send_timeout_seconds = address, send_timeout_seconds
        self._max_message_bytes, self._version = max_message_bytes, version
        self._context = zmq.asyncio.Context()
        self._socket = _socket(self._context, zmq.DEALER, max_message_bytes, address)
        # Without it, hellos and groups would pile up while the learner restarts, all to arrive at once.
        self._socket.immediate = True
        self._socket.sndtimeo = math.ceil(send_timeout_seconds * 1000)
        self._socket.reconnect_ivl_max = 2_000
        if curve:
            self._socket.curve_publickey, self._socket.curve_secretkey = curve.public, curve.secret
            self._socket.curve_serverkey = curve.server_public
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(f"cannot connect to {address}: {error.strerror}") from None

    async def receive(self, timeout_seconds: float) -> Envelope | None:
        """The next message; None when none came within the timeout; raises ProtocolError."""
        frames = await _waiting_message(self._socket)
        if not frames and await self._socket.poll(math.ceil(timeout_seconds * 1000)):
            frames = await _waiting_message(self._socket)
        if not frames:
            return None
        return decode([frame.buffer for frame in frames], self._max_message_bytes, versions=(self._version,))

    async def send(self, envelope: Envelope) -> None:
        """Send.

        Raises:
            PeerLostError: no connection, or no room in its queue, within `send_timeout_seconds`.
        """
        try:
            await self._socket.send_multipart(_frames(envelope, self._max_message_bytes, self._version), copy=False)
        except zmq.Again:
            raise PeerLostError(
                f"{self._address} took no message within {self._send_timeout_seconds:g} s: "
                "nobody listens there, it reads nothing, or the keys differ"
            ) from None

    def close(self) -> None:
        """Let go of the connection; what is queued has half a second to leave."""
        self._context.destroy()


def listening_to_actors(
    address: str, max_message_bytes: int, max_group_bytes: int, curve: CurveServer | None, insecure: bool
) -> RouterChannel:
    """A coordinator's end, with the bounds of what an actor may say; raises ConfigError as RouterChannel does."""
    return RouterChannel(
        address,
        max_message_bytes,
        curve,
        insecure=insecure,
        max_received_bytes=max_group_bytes,
        max_header_bytes=GROUP_HEADER_BYTES,
        messages_per_second=MESSAGES_PER_SECOND,
        versions=SPOKEN_WITH_ACTORS,
    )


def listening_to_requests(
    address: str, curve: CurveServer | None, insecure: bool, versions: Sequence[int]
) -> RouterChannel:
    """The end that takes requests for weights, which are small; raises ConfigError as RouterChannel does."""
    return RouterChannel(
        address,
        MAX_MESSAGE_BYTES,
        curve,
        insecure=insecure,
        max_received_bytes=SMALL_HEADER_BYTES,
        max_header_bytes=SMALL_HEADER_BYTES,
        messages_per_second=REQUESTS_PER_SECOND,
        versions=versions,
    )


def new_pair() -> Pair:
    """A new CURVE key pair."""
    return zmq.curve_keypair()


def connecting(
    curve: CurveClient | None, *, insecure: bool, send_timeout_seconds: float = 5.0
) -> Callable[[str], DealerChannel]:
    """Opens connecting ends to an address, all with the same keys."""
    return lambda address: DealerChannel(
        address, MAX_MESSAGE_BYTES, curve, insecure=insecure, send_timeout_seconds=send_timeout_seconds
    )


def connecting_to_relays(curve: CurveClient | None, *, insecure: bool) -> Callable[[str], DealerChannel]:
    """Opens connecting ends to relays, each known by its own key; raises ConfigError where that is not named."""

    def connect(relay: str) -> DealerChannel:
        address, own = for_relay(curve, relay) if curve else (relay, None)
        return DealerChannel(
            address,
            MAX_MESSAGE_BYTES,
            own,
            insecure=insecure,
            send_timeout_seconds=1.0,
            # Of the release before, perhaps: while a fleet is upgraded both are among its machines.
            version=PREVIOUS_VERSION,
        )

    return connect


def _socket(context: zmq.asyncio.Context, kind: int, max_message_bytes: int, address: str) -> zmq.asyncio.Socket:
    socket = context.socket(kind)
    # From the start: libzmq 4.3.5 may never end a context whose linger is set as a peer drops out (issue 3252 there).
    socket.linger = LINGER_MS
    socket.ipv6 = "[" in address
    socket.handshake_ivl = HANDSHAKE_MS
    socket.maxmsgsize = max_message_bytes
    socket.sndhwm = socket.rcvhwm = QUEUED_MESSAGES
    socket.tcp_keepalive, socket.tcp_keepalive_cnt = 1, KEEPALIVE_PROBES
    socket.tcp_keepalive_idle = socket.tcp_keepalive_intvl = KEEPALIVE_SECONDS
    # Of what was sent and not confirmed, which keepalive alone does not look at.
    socket.tcp_maxrt = 1000 * KEEPALIVE_SECONDS * (KEEPALIVE_PROBES + 1)
    return socket


async def _waiting_message(socket: zmq.asyncio.Socket) -> list[zmq.Frame]:
    """The frames of a message that waits; none where none does. Cheaper than a poll, which takes several futures."""
    try:
        frames: list[zmq.Frame] = await socket.recv_multipart(zmq.NOBLOCK, copy=False)
    except zmq.Again:
        return []
    return frames


def _frames(envelope: Envelope, max_message_bytes: int, version: int) -> list[Frame]:
    frames = encode(envelope, version)
    num_bytes = sum(memoryview(frame).nbytes for frame in frames)
    if num_bytes > max_message_bytes:
        raise ProtocolError(
            f"{envelope.message.kind} has {num_bytes} bytes, over the limit of {max_message_bytes}; "
            "raise network.max_message_bytes"
        )
    return frames


def _bind_problem(address: str, error: zmq.ZMQError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{address} is in use, perhaps by another learner; stop it or listen on another address"
    return f"cannot listen on {address}: {error.strerror}"
