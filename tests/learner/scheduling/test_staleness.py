"""The staleness gate against a count by hand."""

import pytest

from learner.scheduling.staleness import StalenessGate


def test_group_forty_with_sixteen_to_a_step_trains_in_the_third_step_from_now() -> None:
    assert StalenessGate(max_lag=4, groups_per_step=16).batch_step(40, next_step=10) == 12


@pytest.mark.parametrize(("number", "step"), [(0, 10), (3, 10), (4, 12), (7, 12), (8, 14)])
def test_the_lag_of_a_batch_of_two_updates_is_counted_from_its_first_step(number: int, step: int) -> None:
    gate = StalenessGate(max_lag=4, groups_per_step=2, updates_per_batch=2)
    assert gate.groups_per_batch == 4
    assert gate.batch_step(number, next_step=10) == step


@pytest.mark.parametrize(("number", "may"), [(0, True), (15, True), (16, False)])
def test_without_lag_one_whole_batch_may_be_generated_by_the_newest_weights(number: int, may: bool) -> None:
    gate = StalenessGate(max_lag=0, groups_per_step=4, updates_per_batch=4)
    assert gate.may_train(weights_step=8, number=number, next_step=8) is may


@pytest.mark.parametrize(("number", "oldest"), [(0, 6), (1, 6), (2, 7), (9, 10)])
def test_the_oldest_weights_are_max_lag_steps_before_the_training_step(number: int, oldest: int) -> None:
    assert StalenessGate(max_lag=4, groups_per_step=2).oldest_step(number, next_step=10) == oldest


def test_the_first_steps_may_use_the_initial_weights() -> None:
    assert StalenessGate(max_lag=4, groups_per_step=2).oldest_step(0, next_step=1) == 0


@pytest.mark.parametrize(("weights_step", "may"), [(5, False), (6, True), (7, True)])
def test_a_group_may_train_with_exactly_max_lag_and_not_with_one_more(weights_step: int, may: bool) -> None:
    assert StalenessGate(max_lag=4, groups_per_step=2).may_train(weights_step, number=1, next_step=10) is may
