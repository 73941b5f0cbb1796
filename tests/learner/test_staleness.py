"""The staleness gate against a count by hand."""

import pytest

from learner.staleness import StalenessGate


def test_group_forty_with_sixteen_to_a_step_trains_in_the_third_step_from_now() -> None:
    assert StalenessGate(max_lag=4, groups_per_step=16).training_step(40, next_step=10) == 12


@pytest.mark.parametrize(("number", "step"), [(0, 10), (1, 10), (2, 11), (3, 11), (4, 12), (5, 12)])
def test_a_batch_of_two_updates_trains_its_second_half_one_step_later(number: int, step: int) -> None:
    gate = StalenessGate(max_lag=4, groups_per_step=2, updates_per_batch=2)
    assert gate.groups_per_batch == 4
    assert gate.training_step(number, next_step=10) == step


@pytest.mark.parametrize(("number", "oldest"), [(0, 6), (1, 6), (2, 7), (9, 10)])
def test_the_oldest_weights_are_max_lag_steps_before_the_training_step(number: int, oldest: int) -> None:
    assert StalenessGate(max_lag=4, groups_per_step=2).oldest_step(number, next_step=10) == oldest


def test_the_first_steps_may_use_the_initial_weights() -> None:
    assert StalenessGate(max_lag=4, groups_per_step=2).oldest_step(0, next_step=1) == 0


@pytest.mark.parametrize(("weights_step", "may"), [(5, False), (6, True), (7, True)])
def test_a_group_may_train_with_exactly_max_lag_and_not_with_one_more(weights_step: int, may: bool) -> None:
    assert StalenessGate(max_lag=4, groups_per_step=2).may_train(weights_step, number=1, next_step=10) is may
