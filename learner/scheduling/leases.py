"""The lease table: which visit of which prompt is open, and who holds it. Pure: no clock, no socket, no file."""

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from dcpo_async.records import LeaseName


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
        failures: attempts that failed by the prompt's own fault.
        weights_step: optimizer step of the oldest weights that the group may carry, once leased or accepted.
        holder: session that holds the lease; None after a restart until the session says so itself.
        listed_at: when the lease was issued or last listed by a heartbeat, in monotonic seconds.
    """

    position: int
    prompt_index: int
    visit: int
    attempt: int = 0
    failures: int = 0
    state: SlotState = SlotState.WAITING
    weights_step: int = 0
    holder: bytes | None = None
    listed_at: float = 0.0


class LeaseTable:
    """Open visits in lease order; every count that others need is derived from it."""

    def __init__(self, slots: Iterable[Slot], next_position: int) -> None:
        """Take up the visits that a ledger has open.

        Args:
            slots: visits that no committed batch contains.
            next_position: the first position that was never leased or skipped.
        """
        self._slots = {slot.position: slot for slot in sorted(slots, key=lambda slot: slot.position)}
        self.next_position = next_position
        # A heap; positions that wait no more are dropped when they come up.
        self._waiting = [slot.position for slot in self._slots.values() if slot.state is SlotState.WAITING]
        self._open_prompts = {
            slot.prompt_index for slot in self._slots.values() if slot.state is not SlotState.ACCEPTED
        }
        self._num_held: Counter[bytes] = Counter()

    @property
    def open_slots(self) -> list[Slot]:
        """Every visit that no committed batch contains, in lease order."""
        return list(self._slots.values())

    def get(self, position: int) -> Slot | None:
        """The open visit at a position; None when it is trained, quarantined or not leased yet."""
        return self._slots.get(position)

    def num_held(self, session: bytes) -> int:
        """Leases that a session holds."""
        return self._num_held[session]

    def is_prompt_open(self, prompt_index: int) -> bool:
        """Whether the prompt has a visit that has not been accepted."""
        return prompt_index in self._open_prompts

    def next_to_lease(self) -> tuple[int, Slot | None]:
        """Number among the open visits, and the visit, that goes out next; None stands for a new one.

        A visit that was given back keeps its place and goes out before any new one.
        """
        while self._waiting:
            slot = self._slots.get(self._waiting[0])
            if slot is not None and slot.state is SlotState.WAITING:
                return next(i for i, position in enumerate(self._slots) if position == slot.position), slot
            heapq.heappop(self._waiting)
        return len(self._slots), None

    def open_new(self, prompt_index: int, visit: int) -> Slot:
        """Open the visit at the next position."""
        slot = Slot(self.next_position, prompt_index, visit)
        self._slots[slot.position] = slot
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

    def heartbeat(self, session: bytes, held: Sequence[LeaseName], now: float) -> None:
        """Note that a session still works on these leases; names that are not its own change nothing."""
        for name in held:
            slot = self._slots.get(name.position)
            if slot is not None and slot.holder == session and slot.attempt == name.attempt:
                slot.listed_at = now

    def reclaim(self, session: bytes, held: Sequence[LeaseName], now: float) -> None:
        """Take a session that joins again at its word, where nobody else has got the visit meanwhile."""
        for name in held:
            slot = self._slots.get(name.position)
            if slot is None or slot.attempt != name.attempt or slot.state is SlotState.ACCEPTED:
                continue
            if slot.holder is None:
                self._hold(slot, session, now)

    def release_session(self, session: bytes) -> int:
        """Give back all that a lost or leaving session holds; returns how many."""
        return self._release([slot for slot in self._slots.values() if slot.holder == session])

    def release_unlisted(self, now: float, silence_seconds: float) -> int:
        """Give back leases that their holder's heartbeats have not listed for too long; returns how many."""
        return self._release(
            [
                slot
                for slot in self._slots.values()
                if slot.state is SlotState.LEASED and now - slot.listed_at > silence_seconds
            ]
        )

    def fail(self, session: bytes, position: int, attempt: int, is_prompts_fault: bool) -> Slot | None:
        """Take a reported failure; None when the lease was not the session's newest."""
        slot = self._slots.get(position)
        if slot is None or slot.holder != session or slot.attempt != attempt:
            return None
        slot.failures += is_prompts_fault
        self._wait(slot)
        return slot

    def accept(self, position: int, weights_step: int) -> None:
        """The group is in the ledger; `weights_step` is that of the oldest weights it carries."""
        slot = self._slots[position]
        self._let_go(slot)
        slot.state, slot.weights_step = SlotState.ACCEPTED, weights_step
        self._open_prompts.discard(slot.prompt_index)

    def remove(self, positions: Iterable[int]) -> None:
        """Forget visits that are trained, quarantined or too old."""
        for position in positions:
            slot = self._slots.pop(position)
            self._let_go(slot)
            if slot.state is not SlotState.ACCEPTED:
                self._open_prompts.discard(slot.prompt_index)

    def _hold(self, slot: Slot, session: bytes, now: float) -> None:
        slot.state, slot.holder, slot.listed_at = SlotState.LEASED, session, now
        self._num_held[session] += 1

    def _let_go(self, slot: Slot) -> None:
        if slot.holder is not None:
            self._num_held[slot.holder] -= 1
            if self._num_held[slot.holder] == 0:
                del self._num_held[slot.holder]
            slot.holder = None

    def _wait(self, slot: Slot) -> None:
        self._let_go(slot)
        slot.state = SlotState.WAITING
        heapq.heappush(self._waiting, slot.position)

    def _release(self, slots: Sequence[Slot]) -> int:
        for slot in slots:
            self._wait(slot)
        return len(slots)
