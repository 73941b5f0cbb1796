"""Requests to a weight server and its answers, with a bound on its silence."""

from actor.weights.silence import Silence
from dcpo_async.errors import PeerLostError, ProtocolError, RefusedError, WeightsError
from dcpo_async.protocol.messages import Envelope, Message, Reject
from dcpo_async.protocol.weight_messages import ChunkMessage, ManifestMessage, ManifestWant
from dcpo_async.transport.interfaces import Dealer
from dcpo_async.weights.manifest import Manifest

SENDS = 6
"""How often a request goes out before its peer counts as silent."""


class ServerLink:
    """The talk with one weight server.

    Args:
        channel: to the server, for this link alone.
        timeout_seconds: silence after which a request gives up.
        sends: how often a request goes out within it.
        peer: what errors call the other end.
    """

    def __init__(self, channel: Dealer, run_id: str, timeout_seconds: float, peer: str, *, sends: int = SENDS) -> None:
        self.peer, self.run_id = peer, run_id
        self.bytes_received = 0
        self._channel, self._timeout_seconds, self._sends = channel, timeout_seconds, sends
        self._lost = ""

    async def ask_for_manifest(self, version: int) -> tuple[Manifest, ManifestMessage]:
        """The manifest of a version, 0 for the newest, and the message that it came in; raises as `fetch` does."""
        # An answer that came too late for an earlier call would pass for this one's.
        while await self._channel.receive(0) is not None:
            continue
        silence = self.silence()
        while True:
            await self.send(ManifestWant(weights_version=version))
            answer = await self.receive()
            if answer is not None and isinstance(answer.message, ManifestMessage):
                manifest = self._checked(answer.message)
                if version in (0, manifest.weights_version):
                    return manifest, answer.message
            self.check(silence)

    async def send(self, message: Message) -> bool:
        """Whether the request left; when not, the channel is still trying to connect."""
        try:
            await self._channel.send(Envelope(message, run_id=self.run_id))
        except PeerLostError as error:
            self._lost = f" ({error})"
            return False
        self._lost = ""
        return True

    async def receive(self) -> Envelope | None:
        """The next answer, None where it is time to ask again; raises RefusedError and ProtocolError."""
        answer = await self._channel.receive(self._timeout_seconds / self._sends)
        if answer is None:
            return None
        match answer.message:
            case Reject() as reject:
                is_final = reject.reason in ("run_id", "protocol_version")
                raise (RefusedError if is_final else ProtocolError)(f"{self.peer}: {reject.detail}")
            case ManifestMessage() as message:
                self.bytes_received += len(message.manifest_json)
            case ChunkMessage():
                self.bytes_received += answer.arrays["data"].nbytes
        return answer

    def silence(self) -> Silence:
        """A bound on the server's silence from now on."""
        return Silence(self._timeout_seconds)

    def check(self, silence: Silence) -> None:
        """Raise WeightsError, naming the server, once its silence is over its bound."""
        silence.check(f"{self.peer} of run {self.run_id}{self._lost}")

    def _checked(self, message: ManifestMessage) -> Manifest:
        if message.error:
            raise WeightsError(f"{self.peer}: {message.error}")
        manifest = Manifest.from_json(message.manifest_json)
        if manifest.run_id != self.run_id or manifest.weights_version != message.weights_version:
            raise WeightsError(
                f"asked for version {message.weights_version} of run {self.run_id}, {self.peer} has version "
                f"{manifest.weights_version} of run {manifest.run_id}"
            )
        return manifest
