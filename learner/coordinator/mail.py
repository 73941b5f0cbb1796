"""What the coordinator says: kept until everything before it is durable, then sent; and what it refuses to hear."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from dcpo_async.errors import ProtocolError, VersionMismatchError
from dcpo_async.limits import quoted
from dcpo_async.protocol.messages import Array, Envelope, Message, Reject
from dcpo_async.transport.interfaces import Router


def refusal_of(envelope: Envelope | ProtocolError, run_id: str) -> Reject | None:
    """Why a message is not looked at: it could not be read, or is for another run; None where it is to be answered."""
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
