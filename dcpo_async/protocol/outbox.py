"""Groups that are not acknowledged yet, and when each is sent again. Pure: seconds go in, messages come out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dcpo_async.protocol.messages import Array, GroupMessage
from dcpo_async.records import LeaseName

MOST_PATIENCE = 8
"""An unanswered group is sent again after longer and longer, up to this many times the first interval."""


@dataclass(slots=True)
class _Waiting:
    message: GroupMessage
    arrays: Mapping[str, Array]
    due_at: float
    patience: int = 1


class Outbox:
    """Keeps each group until its acknowledgement; it is due at once, then after 1, 2, 4 and 8 times the interval."""

    def __init__(self, resend_seconds: float) -> None:
        self._resend_seconds = resend_seconds
        self._waiting: dict[LeaseName, _Waiting] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, name: LeaseName) -> bool:
        return name in self._waiting

    def __iter__(self) -> Iterator[LeaseName]:
        return iter(self._waiting)

    def put(self, message: GroupMessage, arrays: Mapping[str, Array], now: float) -> None:
        """A group is to be sent."""
        self._waiting[LeaseName(message.position, message.attempt)] = _Waiting(message, arrays, due_at=now)

    def acknowledge(self, name: LeaseName) -> bool:
        """Forget a group; False when it was not waiting."""
        return self._waiting.pop(name, None) is not None

    def tokens(self, name: LeaseName) -> int:
        """Of a group's responses; 0 where it does not wait."""
        waiting = self._waiting.get(name)
        return sum(waiting.message.lengths) if waiting is not None else 0

    def hurry(self, name: LeaseName, now: float) -> None:
        """The coordinator asks for this group again."""
        self._waiting[name].due_at = now

    def hurry_all(self, now: float) -> None:
        """The coordinator is new: all are due, and patience begins anew."""
        for waiting in self._waiting.values():
            waiting.due_at, waiting.patience = now, 1

    def due(self, now: float) -> list[tuple[GroupMessage, Mapping[str, Array]]]:
        """What has to be sent now; it falls due again by itself."""
        due = [waiting for waiting in self._waiting.values() if now >= waiting.due_at]
        for waiting in due:
            waiting.due_at = now + self._resend_seconds * waiting.patience
            waiting.patience = min(2 * waiting.patience, MOST_PATIENCE)
        return [(waiting.message, waiting.arrays) for waiting in due]

    def due_at(self) -> list[float]:
        """When each falls due."""
        return [waiting.due_at for waiting in self._waiting.values()]
