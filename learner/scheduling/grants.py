"""Who gets the next lease: sessions with credit take turns. Pure: no clock, no socket, no file."""

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator

TOLD_AT_ONCE = 32
"""A few milliseconds of sending."""


class Rotation:
    """Sessions that have room for leases, in the order in which their turns come; the others cost nothing.

    A session that gets credit joins at the back, and goes there again after each lease, so that neither the first to
    join nor the last is favoured, even where leases come up one by one.

    Example: a and b have credit 2 and 1; they are granted a, b, a.

    Attributes:
        drained: sessions that get none any more, whatever they want, each with why, for people.
        is_closed: whether nobody does, whoever joins.
    """

    def __init__(self) -> None:
        self._credit: OrderedDict[bytes, int] = OrderedDict()
        self.drained, self.is_closed = dict[bytes, str](), False

    def __len__(self) -> int:
        return len(self._credit)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._credit)

    @property
    def first(self) -> bytes | None:
        """Whose turn it is; None while nobody has credit."""
        return next(iter(self._credit), None)

    def credit(self, session: bytes) -> int:
        """Leases that a session still has room for."""
        return self._credit.get(session, 0)

    def want(self, session: bytes, num_leases: int) -> None:
        """A session has room for this many leases from now on; its turn stays where it is."""
        if num_leases > 0 and not self.is_drained(session):
            self._credit[session] = num_leases
        else:
            self._credit.pop(session, None)

    def is_drained(self, session: bytes) -> bool:
        """Whether a session gets no lease any more."""
        return self.is_closed or session in self.drained

    def drain(self, session: bytes, why: str) -> None:
        """A session gets no lease any more."""
        self.drained.setdefault(session, why)
        self.want(session, 0)

    def left(self, session: bytes) -> None:
        """A session is gone."""
        self.drained.pop(session, None)
        self.want(session, 0)

    def granted(self, session: bytes) -> None:
        """A session has got a lease: one less, and it is the turn of the others."""
        self.want(session, self._credit[session] - 1)
        self.pass_over(session)

    def pass_over(self, session: bytes) -> None:
        """It is the turn of the others first."""
        if session in self._credit:
            self._credit.move_to_end(session)

    def call(self, session: bytes) -> None:
        """It is this session's turn, before all others."""
        if session in self._credit:
            self._credit.move_to_end(session, last=False)


class Untold:
    """Who has yet to be told of the newest version: some at a time, so that others are answered in between."""

    def __init__(self) -> None:
        self._names = deque[bytes]()

    def __len__(self) -> int:
        return len(self._names)

    def begin(self, names: Iterable[bytes]) -> None:
        """All of these are to hear of it, those first who have not heard of the one before."""
        self._names = deque(dict.fromkeys([*self._names, *names]))

    def some(self) -> list[bytes]:
        """The next TOLD_AT_ONCE."""
        return [self._names.popleft() for _ in range(min(TOLD_AT_ONCE, len(self._names)))]
