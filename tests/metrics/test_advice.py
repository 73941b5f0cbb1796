"""Which side is said to wait, and how many GPUs are to move."""

import pytest

from dcpo_async.metrics.advice import Balance, advice, best_shares


def test_a_headline_run_is_told_to_give_the_learner_two_more_gpus() -> None:
    said = advice(Balance(42.0, 0.0, actor_use=0.28, learner_gpus=4, actor_gpus=4))
    assert said == (
        "The trainer is the bottleneck: actors have 28 % of their places taken. "
        "6 : 2 GPUs (learner : actors) would give about 1.5 times the steps."
    )


def test_a_trainer_that_waits_gives_gpus_away() -> None:
    said = advice(Balance(10.0, 30.0, actor_use=1.0, learner_gpus=4, actor_gpus=4))
    assert said.startswith("Generation is the bottleneck: the trainer waits 75 % of the time. 2 : 6 GPUs")
    assert said.endswith("about 1.5 times the steps.")


def test_a_side_keeps_one_gpu() -> None:
    assert best_shares(Balance(100.0, 0.0, 0.01, learner_gpus=1, actor_gpus=7), 1.0) == ((7, 1), pytest.approx(7.0))


@pytest.mark.parametrize("waiting", [0.0, 0.5, 1.0])
def test_two_busy_sides_are_left_alone(waiting: float) -> None:
    balance = Balance(10.0, waiting, actor_use=0.95, learner_gpus=4, actor_gpus=4)
    assert advice(balance) == "Both sides are busy: neither waits for the other."


def test_shares_that_are_as_good_as_any_are_said_to_be() -> None:
    said = advice(Balance(10.0, 0.0, actor_use=0.6, learner_gpus=1, actor_gpus=1))
    assert said.endswith("Their shares of the GPUs are as good as any.")


def test_without_gpus_on_both_sides_it_is_said_what_else_would_help() -> None:
    assert advice(Balance(1.0, 9.0, actor_use=1.0)).endswith(
        "More actors would help, or a larger actor.groups_in_flight."
    )
    said = advice(Balance(9.0, 0.0, actor_use=0.2, learner_gpus=4))
    assert said.endswith("Fewer actors would do, or a lower lag.max_lag at no cost.")


def test_nothing_is_said_before_anything_is_measured() -> None:
    assert advice(Balance(0.0, 0.0, 0.0, 4, 4)) == "Nothing is measured yet."
