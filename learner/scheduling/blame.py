"""Whom a failure is blamed on: the prompt, or the host where it happened. Pure: no clock, no socket, no file."""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from learner.scheduling.leases import LeaseTable, Slot

DOUBT_LEASES = 3
"""A host on which so many different leases have failed in a row, and none was answered between, is not believed."""
WAVE_SECONDS = 60.0
"""Sessions that end within this long of each other, and held different prompts, were ended by something else."""
MAX_HOSTS = 1000
"""Hosts in doubt that are remembered."""


class Fall(NamedTuple):
    """A session that ended without a word, or by a failure of its engine: when, and the positions that it held."""

    at: float
    session: bytes
    positions: frozenset[int]


class Blame:
    """Decides which failures count against a prompt, and who may try it next (decision 30).

    A failure that a host reports as the prompt's counts once for each host; again on the same host only where no other
    is there to try. A host that fails at everything is not believed: what it reported is withdrawn. A refused group
    counts against nobody's prompt. A prompt whose holders fall (`SUSPECT_FALLS`) is leased apart from other suspects,
    and from then on each fall of its holder is a failure of the same kind.

    Args:
        table: of open visits; failures and falls are kept in its slots.
        retry_seconds: after which a lease may go to a host again where it failed.
    """

    def __init__(self, table: LeaseTable, retry_seconds: float) -> None:
        self._table, self.retry_seconds = table, retry_seconds
        self._host_of: dict[bytes, str] = {}
        self._doubts: dict[str, dict[int, int]] = {}
        self._falls: deque[Fall] = deque()

    def join(self, session: bytes, host: str) -> None:
        """A session takes leases from now on."""
        self._host_of[session] = host

    def leave(self, session: bytes) -> None:
        """A session takes no more leases."""
        self._host_of.pop(session, None)

    def host_of(self, session: bytes) -> str:
        """The host of a session; one that never joined counts as a host of its own."""
        return self._host_of.get(session) or session.decode("utf-8", "replace")

    def may_lease(self, slot: Slot, session: bytes, now: float) -> bool:
        """Whether a waiting visit may go to a session now."""
        failed_at = slot.failed_on.get(self.host_of(session))
        if failed_at is not None and now - failed_at < self.retry_seconds:
            return False
        return not slot.is_suspect or not any(
            other.holder == session and other.is_suspect for other in self._table.open_slots
        )

    def delivered(self, session: bytes) -> None:
        """A group of the session was sound: its host is well, and what it reported stands."""
        self._doubts.pop(self.host_of(session), None)

    def failed(self, slot: Slot, session: bytes, now: float, *, is_prompts_fault: bool = True) -> list[Slot]:
        """A lease failed, by the prompt's fault as the host says, or by a group that was refused.

        Returns:
            Slots whose number of failures has changed.
        """
        host = self.host_of(session)
        is_first = host not in slot.failed_on
        slot.failed_on[host] = now
        doubts = self._doubts.setdefault(host, {})
        while len(self._doubts) > MAX_HOSTS:
            del self._doubts[next(iter(self._doubts))]
        if len(doubts) >= DOUBT_LEASES:
            return []
        counts = is_prompts_fault and (is_first or not self._others(slot))
        doubts[slot.position] = doubts.get(slot.position, 0) + counts
        slot.failures += counts
        return self._withdrawn(doubts) if len(doubts) >= DOUBT_LEASES else [slot] * counts

    def is_doubted(self, session: bytes) -> bool:
        """Whether the host of a session fails at everything."""
        return len(self._doubts.get(self.host_of(session), ())) >= DOUBT_LEASES

    def fell(self, slots: Sequence[Slot], session: bytes, now: float) -> list[Slot]:
        """A session fell that held these visits; returns the slots whose number of failures has changed."""
        fall = Fall(now, session, frozenset(slot.position for slot in slots))
        while self._falls and now - self._falls[0].at > WAVE_SECONDS:
            self._falls.popleft()
        others = [earlier.positions for earlier in self._falls if earlier.session != session]
        self._falls.append(fall)
        changed = list[Slot]()
        for slot in slots:
            if any(slot.position not in positions for positions in others):
                continue
            if slot.is_suspect:
                changed += self.failed(slot, session, now)
            else:
                slot.falls += 1
        return changed

    def _others(self, slot: Slot) -> bool:
        """Whether there is a host that has not failed at it."""
        return not set(self._host_of.values()) <= slot.failed_on.keys()

    def _withdrawn(self, doubts: dict[int, int]) -> list[Slot]:
        changed = [slot for position, count in doubts.items() if count and (slot := self._table.get(position))]
        for slot in changed:
            slot.failures = max(0, slot.failures - doubts[slot.position])
        return changed
