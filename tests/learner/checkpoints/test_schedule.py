import pytest

from dcpo_async.config import CheckpointSettings
from learner.checkpoints.schedule import Schedule


def schedule(**settings: float | None) -> Schedule:
    return Schedule(CheckpointSettings(**settings), step=0, taken_at=100.0)


def test_a_checkpoint_is_due_after_every_multiple_of_the_interval() -> None:
    found, due = schedule(interval_steps=3), []
    for step in range(1, 10):
        if found.is_due_by_steps(step):
            due.append(step)
            found.take(step, now=0.0)
    assert due == [3, 6, 9]


def test_one_that_was_put_off_stays_due_and_moves_no_later_one() -> None:
    found = schedule(interval_steps=10)
    assert [found.is_due_by_steps(step) for step in (9, 10, 12, 21)] == [False, True, True, True]
    found.take(21, now=0.0)
    assert [found.is_due_by_steps(step) for step in (29, 30)] == [False, True]


def test_minutes_alone_leave_out_the_steps() -> None:
    found = schedule(interval_minutes=2.0)
    assert not found.is_due_by_steps(1000)
    assert [found.is_due_by_clock(1, now) for now in (219.9, 220.0)] == [False, True]
    found.take(1, now=220.0)
    assert [found.is_due_by_clock(2, now) for now in (339.0, 340.0)] == [False, True]


def test_where_nothing_was_trained_since_nothing_is_due() -> None:
    assert not schedule(interval_minutes=2.0).is_due_by_clock(0, now=1e6)


def test_steps_alone_leave_out_the_clock() -> None:
    assert not schedule(interval_steps=10).is_due_by_clock(5, now=1e6)


@pytest.mark.parametrize(("step", "expected"), [(20, True), (21, False)])
def test_multiples_of_keep_every_steps_are_milestones(step: int, expected: bool) -> None:
    assert schedule(interval_steps=5, keep_every_steps=20).is_milestone(step) == expected
