"""What the coordinator says: kept until everything before it is durable, then sent."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from dcpo_async.protocol.messages import Array, Envelope, Message
from dcpo_async.transport.interfaces import Router


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
