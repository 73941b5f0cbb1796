"""The lease table: which visit of which prompt is open, and who holds it. Pure: no clock, no socket, no file."""

import heapq
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from dcpo_async.records import LeaseName

SUSPECT_FALLS = 5
"""A prompt whose holders have ended so often without a word, before any of them could answer it, is a suspect."""


class SlotState(Enum):
    """Where a visit stands between its lease and its training."""

    WAITING = "waiting"
    LEASED = "leased"
    ACCEPTED = "accepted"


@dataclass(slots=True)
class Slot:
    """One visit of one prompt that no committed batch contains yet; only the table changes it.

    Attributes:
        position: place in the prompt order; the group's identity.
        attempt: newest fencing token, 0 before the first lease.
        failures: attempts that failed by the prompt's own fault, as far as that is believed.
        failed_on: when it failed last, by host, in monotonic seconds; as all that follows not kept over a restart.
        falls: sessions that ended without a word while they held it, until it is a suspect.
        weights_step: optimizer step of the oldest weights that the group may carry, once leased or accepted.
        holder: session that holds the lease; None after a restart until the session says so itself.
        listed_at: when the lease was issued or last listed by a heartbeat, in monotonic seconds.
        leased_at: when it was issued, or its holder was first heard of.
        tokens: response tokens so far, as the holder says.
        changed_at: when that number was last seen to change, or the lease was issued.
        num_handed_over: times that it was taken from a slow holder to be given to a faster one.
        shunned, shunned_until: the session from which it was taken back; it goes to others first, until then.
    """

    position: int
    prompt_index: int
    visit: int
    attempt: int = 0
    failures: int = 0
    failed_on: dict[str, float] = field(default_factory=dict)
    falls: int = 0
    state: SlotState = SlotState.WAITING
    weights_step: int = 0
    holder: bytes | None = None
    listed_at: float = 0.0
    leased_at: float = 0.0
    tokens: int = 0
    changed_at: float = 0.0
    num_handed_over: int = 0
    shunned: bytes | None = None
    shunned_until: float = 0.0

    def is_shunning(self, session: bytes, now: float) -> bool:
        """Whether it was taken back from a session, and goes to others first."""
        return session == self.shunned and now < self.shunned_until

    @property
    def is_suspect(self) -> bool:
        """Whether it may be what ends its holders."""
        return self.falls >= SUSPECT_FALLS


class LeaseTable:
    """Open visits in lease order; every count that others need is derived from it.

    Attributes:
        next_position: the first position that was never leased or skipped.
        held: leases by holder and position; those of holders that have not said so yet are under None.
        num_changes: of what is open, and of its states; as long as it stands, so does what was found out from them.
    """

    def __init__(self, slots: Iterable[Slot], next_position: int) -> None:
        """Take up the visits that a ledger has open.

        Args:
            slots: visits that no committed batch contains.
            next_position: the first position that was never leased or skipped.
        """
        self._slots = {slot.position: slot for slot in sorted(slots, key=lambda slot: slot.position)}
        self.next_position, self.num_changes = next_position, 0
        # The open positions in order, and closed ones, until a number is asked for or half are closed.
        self._positions = list(self._slots)
        self.held: defaultdict[bytes | None, dict[int, Slot]] = defaultdict(dict)
        for slot in self._slots.values():
            if slot.state is SlotState.LEASED:
                self.held[slot.holder][slot.position] = slot
        # A heap; positions that wait no more are dropped when they come up.
        self._waiting = [slot.position for slot in self._slots.values() if slot.state is SlotState.WAITING]
        self._open_prompts = {
            slot.prompt_index for slot in self._slots.values() if slot.state is not SlotState.ACCEPTED
        }

    @property
    def open_slots(self) -> list[Slot]:
        """Every visit that no committed batch contains, in lease order."""
        return list(self._slots.values())

    def get(self, position: int) -> Slot | None:
        """The open visit at a position; None when it is trained, quarantined or not leased yet."""
        return self._slots.get(position)

    def is_prompt_open(self, prompt_index: int) -> bool:
        """Whether the prompt has a visit that has not been accepted."""
        return prompt_index in self._open_prompts

    def next_to_lease(self, may_lease: Callable[[Slot], bool] = lambda _: True) -> tuple[int, Slot | None]:
        """Number among the open visits, and the visit, that goes out next; None stands for a new one.

        A visit that was given back keeps its place and goes out before any new one; suspects, those with the fewest
        failures first, after others that were given back.

        Args:
            may_lease: whether a visit that was given back may go to whoever asks.
        """
        while self._waiting and not self._waits(self._waiting[0]):
            heapq.heappop(self._waiting)
        slot = self._slots[self._waiting[0]] if self._waiting else None
        if slot is not None and (slot.is_suspect or not may_lease(slot)):
            waiting = (self._slots[position] for position in set(self._waiting) if self._waits(position))
            slot = min(filter(may_lease, waiting), key=_by_suspicion, default=None)
        if slot is None:
            return len(self._slots), None
        return self._number_of(slot.position), slot

    @property
    def has_waiting(self) -> bool:
        """Whether a visit waits for its next lease."""
        self.next_to_lease()
        return bool(self._waiting)

    def open_new(self, prompt_index: int, visit: int) -> Slot:
        """Open the visit at the next position."""
        slot = Slot(self.next_position, prompt_index, visit)
        self._slots[slot.position] = slot
        self._positions.append(slot.position)
        self._open_prompts.add(prompt_index)
        self._wait(slot)
        self.next_position += 1
        return slot

    def skip_position(self) -> None:
        """Leave the next position empty, as for a quarantined prompt."""
        self.next_position += 1

    def lease(self, slot: Slot, session: bytes, weights_step: int, now: float) -> None:
        """Give the visit to a session under a new fencing token."""
        assert slot.state is SlotState.WAITING
        slot.attempt += 1
        slot.weights_step = weights_step
        self._hold(slot, session, now)

    def heartbeat(self, session: bytes, held: Sequence[LeaseName], tokens: Sequence[int], now: float) -> int:
        """Note that a session still works on these leases; names that are not its own change nothing.

        Args:
            tokens: response tokens so far of each.

        Returns by how many tokens its leases have grown.
        """
        own, grown = self.held.get(session, {}), 0
        for name, num_tokens in zip(held, tokens, strict=True):
            slot = own.get(name.position)
            if slot is None or slot.attempt != name.attempt:
                continue
            slot.listed_at = now
            if num_tokens != slot.tokens:
                grown += max(0, num_tokens - slot.tokens)
                slot.tokens, slot.changed_at = num_tokens, now
        return grown

    def reclaim(self, session: bytes, held: Sequence[LeaseName], now: float) -> None:
        """Take a session that joins again at its word, where nobody else has got the visit meanwhile."""
        for name in held:
            slot = self._slots.get(name.position)
            if slot is None or slot.attempt != name.attempt or slot.state is SlotState.ACCEPTED:
                continue
            if slot.holder is None and not slot.is_shunning(session, now):
                self._hold(slot, session, now)

    def release_session(self, session: bytes) -> list[Slot]:
        """Give back all that a lost or leaving session holds; returns it."""
        held = list(self.held.get(session, {}).values())
        self._release(held)
        return held

    def release_unlisted(self, now: float, silence_seconds: float) -> int:
        """Give back leases that their holder's heartbeats have not listed for too long; returns how many."""
        held = (slot for slots in self.held.values() for slot in slots.values())
        return self._release([slot for slot in held if now - slot.listed_at > silence_seconds])

    def take_back(self, position: int, *, shun_until: float = 0.0) -> Slot:
        """Let an open visit wait for its next lease, whoever holds it.

        Args:
            shun_until: until then it goes to anybody but its holder.
        """
        slot = self._slots[position]
        if shun_until:
            slot.shunned, slot.shunned_until = slot.holder, shun_until
        self._wait(slot)
        return slot

    def accept(self, position: int, weights_step: int) -> None:
        """The group is in the ledger; `weights_step` is that of the oldest weights it carries."""
        slot = self._slots[position]
        self._let_go(slot)
        self.num_changes += 1
        slot.state, slot.holder, slot.weights_step = SlotState.ACCEPTED, None, weights_step
        self._open_prompts.discard(slot.prompt_index)

    def remove(self, positions: Iterable[int]) -> None:
        """Forget visits that are trained, quarantined or too old."""
        for position in positions:
            slot = self._slots.pop(position)
            self._let_go(slot)
            self.num_changes += 1
            if slot.state is not SlotState.ACCEPTED:
                self._open_prompts.discard(slot.prompt_index)
        if len(self._positions) > 2 * len(self._slots):
            self._positions = list(self._slots)

    def _number_of(self, position: int) -> int:
        """How many open visits come before a position."""
        if len(self._positions) != len(self._slots):
            self._positions = list(self._slots)
        return bisect_left(self._positions, position)

    def _waits(self, position: int) -> bool:
        slot = self._slots.get(position)
        return slot is not None and slot.state is SlotState.WAITING

    def _hold(self, slot: Slot, session: bytes, now: float) -> None:
        self._let_go(slot)
        self.num_changes += 1
        slot.state, slot.holder, slot.listed_at = SlotState.LEASED, session, now
        slot.leased_at = slot.changed_at = now
        slot.tokens = 0
        self.held[session][slot.position] = slot

    def _let_go(self, slot: Slot) -> None:
        if slot.state is SlotState.LEASED:
            held = self.held[slot.holder]
            del held[slot.position]
            if not held:
                del self.held[slot.holder]

    def _wait(self, slot: Slot) -> None:
        self._let_go(slot)
        self.num_changes += 1
        slot.state, slot.holder = SlotState.WAITING, None
        heapq.heappush(self._waiting, slot.position)

    def _release(self, slots: Sequence[Slot]) -> int:
        for slot in slots:
            self._wait(slot)
        return len(slots)


def _by_suspicion(slot: Slot) -> tuple[bool, int, int]:
    return slot.is_suspect, slot.failures if slot.is_suspect else 0, slot.position
