"""Which groups train next: batches by hand."""

from learner.scheduling.batches import Awaited, fill, next_batch, too_old
from learner.scheduling.leases import Slot, SlotState
from learner.scheduling.staleness import StalenessGate

ACCEPTED, LEASED, WAITING = SlotState.ACCEPTED, SlotState.LEASED, SlotState.WAITING


def slots(*states: SlotState, weights_step: int = 0) -> list[Slot]:
    """Open visits at positions 0, 1, 2, … that were all leased under the same weights."""
    return [Slot(i, i, 1, attempt=1, state=state, weights_step=weights_step) for i, state in enumerate(states)]


def test_a_batch_is_filled_in_lease_order() -> None:
    assert next_batch(slots(ACCEPTED, ACCEPTED, ACCEPTED), step=0, gate=StalenessGate(1, 2)) == [0, 1]


def test_a_batch_waits_until_it_is_full() -> None:
    assert next_batch(slots(ACCEPTED), step=0, gate=StalenessGate(1, 2)) is None


def test_a_straggler_is_passed_over_while_it_can_train_in_the_next_batch() -> None:
    assert next_batch(slots(LEASED, ACCEPTED, ACCEPTED), step=0, gate=StalenessGate(1, 2)) == [1, 2]


def test_a_batch_waits_for_a_straggler_whose_weights_would_be_too_old_for_the_next() -> None:
    assert next_batch(slots(LEASED, ACCEPTED, ACCEPTED), step=1, gate=StalenessGate(1, 2)) is None


def test_without_lag_nothing_is_ever_passed_over() -> None:
    assert next_batch(slots(LEASED, ACCEPTED, ACCEPTED), step=0, gate=StalenessGate(0, 2)) is None


def test_a_third_straggler_is_waited_for_since_only_two_fit_into_the_last_batch_that_may_take_them() -> None:
    open_slots = slots(LEASED, LEASED, LEASED, ACCEPTED, ACCEPTED)
    assert next_batch(open_slots, step=0, gate=StalenessGate(2, 2)) == [3, 4]
    # All three may train at step 2 by their weights; the third would then train at step 3.
    assert next_batch(open_slots, step=1, gate=StalenessGate(2, 2)) is None


def test_a_visit_that_waits_for_a_new_lease_stops_no_batch() -> None:
    assert next_batch(slots(WAITING, ACCEPTED, ACCEPTED), step=1, gate=StalenessGate(1, 2)) == [1, 2]


def test_a_group_that_can_train_in_no_batch_is_not_waited_for() -> None:
    assert next_batch(slots(LEASED, ACCEPTED, ACCEPTED), step=2, gate=StalenessGate(1, 2)) == [1, 2]


def test_a_straggler_behind_the_last_member_of_a_batch_does_not_hold_it_up() -> None:
    assert next_batch(slots(ACCEPTED, ACCEPTED, LEASED), step=1, gate=StalenessGate(1, 2)) == [0, 1]


def test_with_two_updates_a_batch_takes_twice_as_many_groups_and_moves_on_by_two_steps() -> None:
    gate = StalenessGate(max_lag=3, groups_per_step=1, updates_per_batch=2)
    open_slots = slots(LEASED, LEASED, ACCEPTED, ACCEPTED)
    # Passed over they train in the batch of step 2.
    assert next_batch(open_slots, step=0, gate=gate) == [2, 3]
    # Passed over again they would train in the batch of step 4.
    assert next_batch(open_slots, step=2, gate=gate) is None


def test_accepted_groups_beyond_max_lag_are_too_old() -> None:
    open_slots = [
        Slot(0, 0, 1, state=ACCEPTED, weights_step=4),
        Slot(1, 1, 1, state=LEASED, weights_step=0),
        Slot(2, 2, 1, state=ACCEPTED, weights_step=5),
    ]
    assert too_old(open_slots, step=6, gate=StalenessGate(1, 2)) == [0]


def test_a_group_is_too_old_by_the_step_that_it_would_train_in() -> None:
    # Number 2 trains one step later than numbers 0 and 1.
    assert too_old(slots(ACCEPTED, ACCEPTED, ACCEPTED), step=1, gate=StalenessGate(1, 2)) == [2]


def test_the_groups_that_are_left_move_up_when_some_are_too_old() -> None:
    fresh = [Slot(i, i, 1, state=ACCEPTED, weights_step=5) for i in (1, 2)]
    stale = Slot(0, 0, 1, state=ACCEPTED, weights_step=0)
    assert too_old([stale, *fresh], step=6, gate=StalenessGate(1, 2)) == [0]


def test_what_a_batch_waits_for_is_the_lease_that_it_needs_else_the_first_that_is_out() -> None:
    open_slots = slots(LEASED, ACCEPTED, ACCEPTED)
    assert fill(open_slots, step=1, gate=StalenessGate(1, 2)) == Awaited(open_slots[0], is_due=True)
    open_slots = slots(WAITING, LEASED, ACCEPTED)
    assert fill(open_slots, step=0, gate=StalenessGate(1, 2)) == Awaited(open_slots[1], is_due=False)
    assert fill(slots(WAITING, ACCEPTED), step=0, gate=StalenessGate(1, 2)) == Awaited(None, is_due=False)
