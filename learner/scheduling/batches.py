"""Which groups train next."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from learner.scheduling.leases import LeaseTable, Slot, SlotState
from learner.scheduling.staleness import StalenessGate


def next_batch(open_slots: Sequence[Slot], step: int, gate: StalenessGate) -> list[int] | None:
    """Positions of the batch that starts at `step`, in lease order; None while it has to wait.

    A group still in the making is passed over while it can train later within max_lag, so that long responses delay
    nothing; when it cannot, the batch waits for it, so that they are not selected against. A visit that waits for a
    new lease can train later: that lease comes with newer weights.

    Args:
        open_slots: visits that no committed batch contains, in lease order, without those that are `too_old`.
        step: first optimizer step of the batch.
        gate: the run's staleness gate.
    """
    found = fill(open_slots, step, gate)
    return None if isinstance(found, Awaited) else found


@dataclass(frozen=True, slots=True)
class Awaited:
    """What a batch waits for.

    Attributes:
        slot: the first lease that it needs, else the first one that is out; None while there is none.
        is_due: the batch needs this one, and would be full or go on without it.
    """

    slot: Slot | None
    is_due: bool


class Batches:
    """`too_old` and `fill` of a table, looked for once for each change among its open visits."""

    def __init__(self, table: LeaseTable, gate: StalenessGate) -> None:
        self._table, self._gate = table, gate
        self._seen = (-1, -1)
        self._found: tuple[list[int], list[int] | Awaited] = ([], [])

    def look(self, step: int) -> tuple[list[int], list[int] | Awaited]:
        """What is too old for the batch of a step; the batch, or what it waits for, if nothing is."""
        if self._seen != (step, self._table.num_changes):
            slots = self._table.open_slots
            self._found = too_old(slots, step, self._gate), fill(slots, step, self._gate)
            self._seen = (step, self._table.num_changes)
        return self._found


def fill(open_slots: Sequence[Slot], step: int, gate: StalenessGate) -> list[int] | Awaited:
    """The positions of `next_batch`, or what it waits for."""
    positions: list[int] = []
    num_passed_over = 0
    first: Slot | None = None
    # Weights of the first may still train in this batch, those from the second on in a later one too.
    oldest = step - gate.max_lag
    oldest_later = oldest + gate.updates_per_batch
    for slot in open_slots:
        if slot.state is SlotState.ACCEPTED:
            positions.append(slot.position)
            if len(positions) == gate.groups_per_batch:
                return positions
        elif slot.state is SlotState.LEASED and oldest <= slot.weights_step < oldest_later:
            return Awaited(slot, is_due=True)
        else:
            num_passed_over += 1
            if num_passed_over % gate.groups_per_batch == 0:
                # Those that were passed over fill a batch before it.
                oldest_later += gate.updates_per_batch
            first = first or (slot if slot.state is SlotState.LEASED else None)
    return Awaited(first, is_due=False)


def too_old(open_slots: Iterable[Slot], step: int, gate: StalenessGate) -> list[int]:
    """Accepted groups that would train with more than max_lag, even if no group before them still came in.

    That happens when max_lag was lowered since they were leased, or when the weights they carry are those of a
    trainer that was put back.
    """
    stale: list[int] = []
    num_fresh = 0
    for slot in open_slots:
        if slot.state is not SlotState.ACCEPTED:
            continue
        if gate.may_train(slot.weights_step, num_fresh, step):
            num_fresh += 1
        else:
            stale.append(slot.position)
    return stale
