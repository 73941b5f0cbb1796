"""Who gets through to a listening socket: asked at each handshake (ZAP, RFC 27), and again at each message."""

import asyncio
import logging

import zmq
import zmq.asyncio
from zmq.utils import z85

from dcpo_async.limits import Repeats, quoted
from dcpo_async.transport.admission import KeyHolder
from dcpo_async.transport.key_files import CurveServer

log = logging.getLogger("keys")

DOMAIN = b"dcpo"
_VERSION = b"1.0"
_ENDPOINT = "inproc://zeromq.zap.01"
_ADMITTED, _NOT_NOW = b"200", b"300"
"""One that is refused by 400 gives up for good; by 300 its libzmq comes again when its handshake runs out (10 s), and
gets in once its key is admitted."""


class Gate:
    """Lets through whose key is admitted, as long as it is.

    Args:
        socket: gets the keys; not bound yet.
        curve: the keys of the socket, and who is admitted.
    """

    def __init__(self, socket: zmq.asyncio.Socket, curve: CurveServer) -> None:
        self.admission, self._repeats = curve.admission, Repeats()
        socket.curve_server = True
        socket.curve_publickey, socket.curve_secretkey = curve.public, curve.secret
        socket.zap_domain, socket.zap_enforce_domain = DOMAIN, True
        self._questions = socket.context.socket(zmq.ROUTER)
        self._questions.linger = 0
        self._questions.bind(_ENDPOINT)
        self._swept = self.admission.version
        self._tasks = {asyncio.create_task(self._take_questions())}

    def holder_of(self, frame: zmq.Frame) -> KeyHolder | None:
        """Whose key a message came with; None where it is not admitted any more."""
        key = str(frame.get("User-Id"))
        holder = self.admission.holder_of(key)
        if holder is None:
            self._tell(str(frame.get("Peer-Address")), self.admission.described(key), "a message")
        return holder

    def has_changed(self) -> bool:
        """Whether others are admitted than at the last call."""
        self.admission.look()
        before, self._swept = self._swept, self.admission.version
        return before != self._swept

    def closed(self, holder: KeyHolder, address: str) -> None:
        """A connection was closed since its key is not admitted any more, or not as what it was."""
        self._tell(address, f"{holder.role} {holder.name} is no longer admitted by its key", "an open connection")

    def failed(self, problem: int) -> None:
        """A handshake failed before there was a key to ask for; `problem` is libzmq's number for why, 0 for none."""
        is_cryptographic = problem == zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC
        reason = "it has the public key of another server" if is_cryptographic else "it has no keys, or broke off"
        # libzmq does not say whose it was.
        self._tell("", reason, "a handshake")

    def stop(self) -> None:
        """Answer no more; the context closes the sockets."""
        for task in self._tasks:
            task.cancel()

    async def _take_questions(self) -> None:
        while True:
            question = await self._questions.recv_multipart()
            who, _, version, request, _, address, _, mechanism, *credentials = question
            is_curve = mechanism == b"CURVE" and len(credentials) == 1 and version == _VERSION
            key = z85.encode(credentials[0]).decode() if is_curve else ""
            answering = self._answer([who, b"", _VERSION, request], key, quoted(address))
            if self.admission.holder_of(key) is not None:
                await answering
            else:
                # Nobody waits for those who are not known.
                self._tasks.add(task := asyncio.create_task(answering))
                task.add_done_callback(self._tasks.discard)

    async def _answer(self, envelope: list[bytes], key: str, address: str) -> None:
        status, user = (_ADMITTED, key.encode()) if await self._is_admitted(key, address) else (_NOT_NOW, b"")
        await self._questions.send_multipart([*envelope, status, b"", user, b""])

    async def _is_admitted(self, key: str, address: str) -> bool:
        if self.admission.holder_of(key) is None:
            await self.admission.ask()
        if self.admission.holder_of(key) is None:
            self._tell(address, self.admission.described(key), "a handshake")
            return False
        return True

    def _tell(self, address: str, reason: str, what: str) -> None:
        if count := self._repeats.count(f"{address} {reason} {what}"):
            whose = f" of {address}" if address else ""
            times = f" ({count} times since it was said last)" if count > 1 else ""
            log.warning("refused %s%s: %s%s", what, whose, reason, times)
