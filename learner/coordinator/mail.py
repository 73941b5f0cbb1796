"""What the coordinator says: kept until everything before it is durable, then sent; and what it refuses to hear."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from hashlib import blake2b
from typing import NamedTuple

from dcpo_async.errors import ProtocolError, RevokedError, RoleError, VersionMismatchError
from dcpo_async.limits import MAX_WORDS, quoted
from dcpo_async.protocol.messages import Array, Bye, Envelope, Heartbeat, Hello, Message, Reject
from dcpo_async.transport.admission import KeyHolder, Role
from dcpo_async.transport.interfaces import Received, Router

ROLES_SAY: Mapping[Role, tuple[type[Message], ...]] = {"evaluator": (Hello, Heartbeat, Bye), "rank": ()}
"""What those may say whom actors' keys would allow more; the machines of ranks have a socket of their own."""


def as_admitted(received: Received) -> Envelope | ProtocolError:
    """What came, as the key allows it that it came with: of its role, and under no name but the key's own.

    A session is the key's too: whoever shows its `session_id` with another key opens another one.
    """
    envelope, holder = received.envelope, received.holder
    if holder is None or isinstance(envelope, ProtocolError):
        return envelope
    message, kind = envelope.message, envelope.message.kind
    said = message.role if isinstance(message, Hello) else holder.role
    if said != holder.role or not isinstance(message, ROLES_SAY.get(holder.role, Message)):
        as_what = f"{kind} as {said}" if isinstance(message, Hello) else kind
        return RoleError(f"{as_what}: the key of {holder.name} is for the role {holder.role}, which does not send it")
    if isinstance(message, Hello):
        own = blake2b(message.session_id.encode(), digest_size=16, key=holder.key.encode()).hexdigest()
        name = f"{holder.name}/{message.name}"[:MAX_WORDS]
        bound = {"session_id": own, "name": name, "host": holder.name, "relay": _with_key(message.relay, holder)}
        return replace(envelope, message=message.model_copy(update=bound))
    if isinstance(message, Heartbeat) and message.relay:
        return replace(envelope, message=message.model_copy(update={"relay": _with_key(message.relay, holder)}))
    return envelope


def _with_key(relay: str, holder: KeyHolder) -> str:
    """Where a relay is found, with the key by which others know it; none where that is too long to be told."""
    return f"{relay}/{holder.key}" if relay and len(relay) <= MAX_WORDS else ""


def refusal_of(envelope: Envelope | ProtocolError, run_id: str) -> Reject | None:
    """Why a message is not looked at: it cannot be read, or is for another run; None where that is not said."""
    if isinstance(envelope, RevokedError):
        return None
    if isinstance(envelope, RoleError):
        return Reject(reason="role", detail=str(envelope))
    if isinstance(envelope, VersionMismatchError):
        return Reject(reason="protocol_version", detail=str(envelope))
    if isinstance(envelope, ProtocolError):
        return Reject(reason="invalid", detail=str(envelope))
    if envelope.run_id in ("", run_id):
        return None
    detail = (
        f"this learner is on run {run_id}, the peer on run {quoted(envelope.run_id)}; "
        "start the actor again without a run, or point it to its own learner"
    )
    return Reject(reason="run_id", detail=detail)


class Letter(NamedTuple):
    """An envelope on its way to a peer."""

    router: Router
    peer: bytes
    envelope: Envelope


class Mail:
    """Letters that wait for the next commit.

    Args:
        run_id, incarnation: go with every letter.
    """

    def __init__(self, run_id: str, incarnation: int) -> None:
        self.run_id, self.incarnation = run_id, incarnation
        self._waiting: list[Letter] = []

    def post(self, router: Router, peer: bytes, message: Message, arrays: Mapping[str, Array] | None = None) -> None:
        """Leave a message for a peer."""
        self._waiting.append(Letter(router, peer, Envelope(message, arrays or {}, self.run_id, self.incarnation)))

    def collect(self) -> Iterator[Letter]:
        """Take out all that waits, in order; what is posted meanwhile waits for the commit after."""
        letters, self._waiting = self._waiting, []
        return iter(letters)
