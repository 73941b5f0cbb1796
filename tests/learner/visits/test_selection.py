"""Rests by pass rate: the bounds, the policy, and that a ledger gives the same decisions to whoever asks it."""

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.coordinator.intake import Intake
from learner.visits.selection import History, Selection, wilson_bounds
from tests.learner.small_run import OpenIntake, answer, make_config, make_intake, publish

RIGHT, WRONG, MIXED = (1.0, 1.0), (0.0, 0.0), (1.0, 0.0)
NUM_PROMPTS, LOOK_AGAIN, BOUND, HALF_LIFE = 6, 3, 0.45, 4.0
SETTINGS = {
    "selection": "pass_rate",
    "selection_bound": BOUND,
    "selection_half_life_visits": HALF_LIFE,
    "selection_look_again_epochs": LOOK_AGAIN,
}


def test_bounds_are_those_of_the_score_interval_by_hand() -> None:
    low, high = wilson_bounds(8.0, 8.0)
    assert (round(low, 3), high) == (0.747, 1.0)
    assert wilson_bounds(0.0, 8.0) == pytest.approx((0.0, 1 - low))
    # 5 of 10 at two deviations: (5 + 2)/14 ± 2/14 · √(2.5 + 1).
    assert wilson_bounds(5.0, 10.0, 2.0) == pytest.approx((0.5 - math.sqrt(3.5) / 7, 0.5 + math.sqrt(3.5) / 7))


@given(st.floats(0.1, 1000), st.floats(0, 1), st.floats(0.5, 3))
def test_a_bound_is_where_the_rate_is_so_many_deviations_off(trials: float, share: float, deviations: float) -> None:
    for bound in wilson_bounds(share * trials, trials, deviations):
        assert 0 <= bound <= 1
        expected = deviations**2 * bound * (1 - bound) / trials
        assert (share - bound) ** 2 == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_the_worked_example_of_the_policy() -> None:
    policy = Selection(0.2, 4.0, 3)
    solved, hopeless = History(((1.0,) * 8,) * 2, 2), History(((0.0,) * 8,) * 2, 2)
    assert (policy.judgement(solved), policy.judgement(hopeless)) == ("solved", "hopeless")
    assert [policy.rests(solved, visit) for visit in (3, 4, 5)] == [True, True, False]
    assert policy.judgement(History(((1.0,) * 8,), 1)) == "open"
    assert policy.judgement(History((), 0)) == "open"


def test_the_pass_rate_of_an_own_reward_is_where_in_its_range_the_mean_lies() -> None:
    policy = Selection(0.2, 4.0, 3, (-1.0, 3.0))
    assert policy.judgement(History(((3.0,) * 8,) * 2, 2)) == "solved"
    assert policy.judgement(History(((1.0,) * 8,) * 2, 2)) == "open"
    assert policy.judgement(History(((-1.0, -1.5) * 4,) * 2, 2)) == "hopeless"


def test_hopeless_prompts_do_not_rest_where_only_solved_ones_do() -> None:
    policy = Selection(0.2, 4.0, 3, is_of_solved=True)
    solved, hopeless = History(((1.0,) * 8,) * 2, 2), History(((0.0,) * 8,) * 2, 2)
    assert (policy.judgement(solved), policy.judgement(hopeless)) == ("solved", "hopeless")
    assert (policy.rests(solved, 3), policy.rests(hopeless, 3)) == (True, False)


def test_what_was_long_ago_counts_for_little() -> None:
    policy = Selection(0.2, 0.2, 3)
    assert policy.judgement(History(((0.0,) * 8, (1.0,) * 16), 2)) == "solved"
    assert Selection(0.2, 100.0, 3).judgement(History(((0.0,) * 8, (1.0,) * 16), 2)) == "open"


# ---- in a run

Answers = list[tuple[float, float]]
rewards = st.lists(st.sampled_from([RIGHT, RIGHT, WRONG, MIXED]), min_size=NUM_PROMPTS, max_size=NUM_PROMPTS)


def run(intake: Intake, by_prompt: Answers, num_leases: int) -> list[tuple[int, str, int]]:
    """Answers leases one by one, each prompt always alike; returns what went out."""
    seen = []
    for _ in range(num_leases):
        step = intake.ledger.next_batch_step()
        version = publish(intake, step)
        lease = intake.grant(b"a", now=0.0)
        assert lease is not None
        seen.append((lease.position, lease.prompt_id, lease.visit))
        intake.accept(b"a", answer(lease, version, by_prompt[int(lease.prompt_id.removeprefix("prompt-"))]))
        intake.commit_batch(step)
        intake.ledger.commit()
    return seen


def by_the_rule(intake: Intake, by_prompt: Answers, num_leases: int) -> list[tuple[int, str, int]]:
    """The same by a slow loop over positions, which keeps all rewards of each prompt in lists."""
    order, seen, history, last, rested = intake._coming._order, [], {}, {}, []
    position = 0
    while len(seen) < num_leases:
        index, visit = order.index(position), order.epoch(position) + 1
        decayed = [2 ** (-age / HALF_LIFE) for age in range(len(history.get(index, [])))][::-1]
        trials = sum(2 * weight for weight in decayed)
        passes = sum(weight * sum(group) for weight, group in zip(decayed, history.get(index, []), strict=True))
        sure = trials > 0 and (
            wilson_bounds(passes, trials)[0] >= 1 - BOUND or wilson_bounds(passes, trials)[1] <= BOUND
        )
        recent = [place for place in rested if place > position - NUM_PROMPTS]
        if sure and visit - last[index] < LOOK_AGAIN and len(recent) < NUM_PROMPTS - 1:
            rested.append(position)
        else:
            seen.append((position, f"prompt-{index}", visit))
            history.setdefault(index, []).append(by_prompt[index])
            last[index] = visit
        position += 1
    return seen


@given(by_prompt=rewards, num_before=st.integers(0, 40))
@settings(max_examples=25, deadline=None)
def test_a_run_that_is_killed_anywhere_visits_what_the_rule_says(
    tmp_path_factory: pytest.TempPathFactory, by_prompt: Answers, num_before: int
) -> None:
    config = make_config(tmp_path_factory.mktemp("run"), groups_per_step=1, max_lag=0, data=SETTINGS)
    intake = make_intake(config, NUM_PROMPTS)
    seen = run(intake, by_prompt, num_before)
    # Killed with a lease that was not committed, and with it what was passed over before.
    publish(intake, intake.ledger.next_batch_step())
    intake.grant(b"a", now=0.0)
    intake.ledger.abandon()
    intake = make_intake(config, NUM_PROMPTS)
    seen += run(intake, by_prompt, 45 - num_before)
    assert seen == by_the_rule(intake, by_prompt, 45)
    intake.ledger.close()


def test_a_run_in_which_only_solved_prompts_rest_goes_on_visiting_the_hopeless_ones(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    config = make_config(tmp_path, groups_per_step=1, max_lag=0, data={**SETTINGS, "selection": "solved"})
    seen = run(open_intake(config, NUM_PROMPTS), [RIGHT, WRONG, WRONG, RIGHT, RIGHT, RIGHT], 40)
    visits = {name: sum(name == prompt for _, prompt, _ in seen) for name in ("prompt-0", "prompt-1", "prompt-2")}
    assert visits["prompt-1"] == max(visits.values()) > 2 * visits["prompt-0"]
    assert abs(visits["prompt-1"] - visits["prompt-2"]) <= 1


def test_decisions_that_were_taken_stay_when_the_policy_changes(tmp_path: Path, open_intake: OpenIntake) -> None:
    config = make_config(tmp_path, groups_per_step=1, max_lag=0, data=SETTINGS)
    intake = make_intake(config, NUM_PROMPTS)
    seen = run(intake, [MIXED, *[RIGHT] * (NUM_PROMPTS - 1)], 30)
    end = intake.ledger.next_position()
    intake.ledger.close()
    again = open_intake(make_config(tmp_path, groups_per_step=1, max_lag=0), NUM_PROMPTS)
    assert again.table.next_position == end > len(seen)
    lease = run(again, [MIXED] * NUM_PROMPTS, NUM_PROMPTS)
    assert [position for position, _, _ in lease] == list(range(end, end + NUM_PROMPTS))


def test_whatever_rests_enough_prompts_are_visited(tmp_path: Path, open_intake: OpenIntake) -> None:
    intake = open_intake(make_config(tmp_path, groups_per_step=2, max_lag=1, data=SETTINGS), NUM_PROMPTS)
    seen = run_batches(intake, 30)
    for start in range(seen[-1] - NUM_PROMPTS):
        assert sum(start <= position < start + NUM_PROMPTS for position in seen) >= 4
    assert intake.summary()["total_visits_rested"] > 0


def run_batches(intake: Intake, num_steps: int) -> list[int]:
    """Steps of two groups, everything right; returns the positions that went out."""
    seen = []
    for step in range(num_steps):
        version = publish(intake, step)
        for _ in range(2):
            lease = intake.grant(b"a", now=0.0)
            assert lease is not None
            seen.append(lease.position)
            intake.accept(b"a", answer(lease, version, RIGHT))
        assert intake.commit_batch(step)
    return seen
