"""Which groups train next. Pure functions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from learner.scheduling.leases import Slot, SlotState
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


def fill(open_slots: Sequence[Slot], step: int, gate: StalenessGate) -> list[int] | Awaited:
    """The positions of `next_batch`, or what it waits for."""
    positions: list[int] = []
    num_passed_over = 0
    first: Slot | None = None
    for slot in open_slots:
        if slot.state is SlotState.ACCEPTED:
            positions.append(slot.position)
            if len(positions) == gate.groups_per_batch:
                return positions
        elif slot.state is SlotState.LEASED and _is_due(slot, len(positions), num_passed_over, step, gate):
            return Awaited(slot, is_due=True)
        else:
            num_passed_over += 1
            first = first or (slot if slot.state is SlotState.LEASED else None)
    return Awaited(first, is_due=False)


def _is_due(slot: Slot, number: int, later_number: int, step: int, gate: StalenessGate) -> bool:
    """Whether it can train in the batch of `step`, as group `number`, but not in the one after it."""
    return gate.may_train(slot.weights_step, number, step) and not gate.may_train(
        slot.weights_step, later_number, step + gate.updates_per_batch
    )


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
