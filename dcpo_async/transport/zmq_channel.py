"""Envelopes over ZeroMQ. The only importer of zmq, so every ZeroMQ error is translated here."""

import errno
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import zmq
import zmq.asyncio
from zmq.auth.asyncio import AsyncioAuthenticator

from dcpo_async.errors import ConfigError, PeerLostError, ProtocolError
from dcpo_async.protocol.codec import Frame, decode, encode
from dcpo_async.protocol.messages import Envelope
from dcpo_async.transport.interfaces import MAX_MESSAGE_BYTES, Received
from dcpo_async.transport.security import CurveClient, CurveServer, check_address, write_keys

MAX_RECEIVED = 256
"""Messages handed over at once; the caller's other duties wait no longer than these take."""
QUEUED_MESSAGES = 256
"""Messages that wait for one peer before it counts as lost."""
LINGER_MS = 500
PING_MS = 5_000
PING_TIMEOUT_MS = 15_000
_DOMAIN = "dcpo"


class RouterChannel:
    """The listening end; open it inside a running event loop, and close it after the last receive."""

    def __init__(
        self,
        address: str,
        max_message_bytes: int,
        curve: CurveServer | None = None,
        *,
        insecure: bool = False,
    ) -> None:
        """Listen.

        Args:
            address: tcp://host:port or ipc://path; port 0 takes any free one.
            max_message_bytes: larger messages are refused; a single frame of that size ends its connection.
            curve: keys; only peers that show `curve.client_public` get a message through.
            insecure: allow an address off this machine without keys.

        Raises:
            ConfigError: the address is malformed, taken, not ours, or needs keys.
        """
        check_address(address, curve is not None, insecure)
        self._max_message_bytes = max_message_bytes
        self._context = zmq.asyncio.Context()
        self._authenticator = _authenticator(self._context, curve) if curve else None
        self._socket = _socket(self._context, zmq.ROUTER, max_message_bytes, address)
        self._socket.router_mandatory = True
        self._socket.router_handover = True
        if curve:
            self._socket.curve_server = True
            self._socket.curve_publickey, self._socket.curve_secretkey = curve.public, curve.secret
            self._socket.zap_domain = _DOMAIN.encode()
            self._socket.zap_enforce_domain = True
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
        """Everything that waits, at most MAX_RECEIVED; empty when nothing came within the timeout."""
        received = await self._waiting()
        if not received and await self._socket.poll(math.ceil(timeout_seconds * 1000)):
            received = await self._waiting()
        return received

    async def send(self, peer: bytes, envelope: Envelope) -> None:
        """Send without waiting.

        Raises:
            PeerLostError: no such peer is connected, or QUEUED_MESSAGES wait for it already.
        """
        frames = _frames(envelope, self._max_message_bytes)
        try:
            await self._socket.send_multipart([peer, *frames], zmq.NOBLOCK, copy=False)
        except zmq.Again:
            raise PeerLostError(f"{QUEUED_MESSAGES} messages wait for peer {peer!r}: it reads none") from None
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise
            raise PeerLostError(f"peer {peer!r} is not connected") from None

    def close(self) -> None:
        """Let go of the address; what is queued has half a second to leave."""
        if self._authenticator:
            self._authenticator.stop()
            self._authenticator = None
        self._context.destroy()

    async def _waiting(self) -> list[Received]:
        received = list[Received]()
        while len(received) < MAX_RECEIVED and (message := await _waiting_message(self._socket)):
            peer, *frames = message
            received.append(Received(peer.bytes, self._decoded(frames)))
        return received

    def _decoded(self, frames: Sequence[zmq.Frame]) -> Envelope | ProtocolError:
        try:
            return decode([frame.buffer for frame in frames], self._max_message_bytes)
        except ProtocolError as error:
            return error


class DealerChannel:
    """The connecting end; it connects again on its own, and nothing is queued while it is not connected."""

    def __init__(
        self,
        address: str,
        identity: bytes,
        max_message_bytes: int,
        curve: CurveClient | None = None,
        *,
        insecure: bool = False,
        send_timeout_seconds: float = 5.0,
    ) -> None:
        """Begin to connect; whether anybody listens shows in the first answer.

        Args:
            address: tcp://host:port or ipc://path.
            identity: 1 to 255 bytes, the first not zero; a newer connection of the same identity takes over.
            max_message_bytes: larger messages are refused.
            curve: keys of this side and of the router.
            insecure: allow an address off this machine without keys.
            send_timeout_seconds: how long a send waits for a connection and room in its queue.

        Raises:
            ConfigError: the address is malformed, or needs keys.
        """
        check_address(address, curve is not None, insecure)
        self._address, self._send_timeout_seconds = address, send_timeout_seconds
        self._max_message_bytes = max_message_bytes
        self._context = zmq.asyncio.Context()
        self._socket = _socket(self._context, zmq.DEALER, max_message_bytes, address)
        self._socket.identity = identity
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
        return decode([frame.buffer for frame in frames], self._max_message_bytes) if frames else None

    async def send(self, envelope: Envelope) -> None:
        """Send.

        Raises:
            PeerLostError: no connection, or no room in its queue, within `send_timeout_seconds`.
        """
        try:
            await self._socket.send_multipart(_frames(envelope, self._max_message_bytes), copy=False)
        except zmq.Again:
            raise PeerLostError(
                f"{self._address} took no message within {self._send_timeout_seconds:g} s: "
                "nobody listens there, it reads nothing, or the keys differ"
            ) from None

    def close(self) -> None:
        """Let go of the connection; what is queued has half a second to leave."""
        self._context.destroy()


def generate_keys(folder: Path) -> None:
    """Write a key pair for the learner and one that all actors share; raises ConfigError where keys are."""
    write_keys(folder, {"server": zmq.curve_keypair(), "client": zmq.curve_keypair()})


def connecting(
    curve: CurveClient | None, *, insecure: bool, send_timeout_seconds: float = 5.0
) -> Callable[[str, bytes], DealerChannel]:
    """Opens connecting ends to an address under an identity, all with the same keys."""
    return lambda address, identity: DealerChannel(
        address, identity, MAX_MESSAGE_BYTES, curve, insecure=insecure, send_timeout_seconds=send_timeout_seconds
    )


class _OneKey:
    """Admits a single client key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def callback(self, domain: str, key: bytes) -> bool:
        return key == self._key


def _authenticator(context: zmq.asyncio.Context, curve: CurveServer) -> AsyncioAuthenticator:
    authenticator = AsyncioAuthenticator(context)
    authenticator.configure_curve_callback(_DOMAIN, _OneKey(curve.client_public))
    authenticator.start()
    return authenticator


def _socket(context: zmq.asyncio.Context, kind: int, max_message_bytes: int, address: str) -> zmq.asyncio.Socket:
    socket = context.socket(kind)
    # From the start: libzmq 4.3.5 may never end a context whose linger is set as a peer drops out (issue 3252 there).
    socket.linger = LINGER_MS
    socket.ipv6 = "[" in address
    socket.maxmsgsize = max_message_bytes
    socket.sndhwm = socket.rcvhwm = QUEUED_MESSAGES
    socket.heartbeat_ivl = PING_MS
    socket.heartbeat_timeout = socket.heartbeat_ttl = PING_TIMEOUT_MS
    return socket


async def _waiting_message(socket: zmq.asyncio.Socket) -> list[zmq.Frame]:
    """The frames of a message that waits; none where none does. Cheaper than a poll, which takes several futures."""
    try:
        frames: list[zmq.Frame] = await socket.recv_multipart(zmq.NOBLOCK, copy=False)
    except zmq.Again:
        return []
    return frames


def _frames(envelope: Envelope, max_message_bytes: int) -> list[Frame]:
    frames = encode(envelope)
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
