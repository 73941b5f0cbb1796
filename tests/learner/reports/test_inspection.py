"""Which groups of a ledger are chosen, and what is said of each."""

from pathlib import Path

import pytest

from dcpo_async.algorithm import RewardStats
from dcpo_async.config import RunConfig
from dcpo_async.errors import ConfigError
from learner.coordinator.intake import Intake
from learner.reports.inspection import Outcome, Selection, shown_groups
from tests.learner.small_run import OpenIntake, answer, make_config, make_intake, publish, train

ALL, NONE, SOME = (1.0, 1.0), (0.0, 0.0), (1.0, 0.0)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return make_config(tmp_path, groups_per_step=2, max_lag=1)


def positions(intake: Intake, selection: Selection) -> list[int]:
    return [group.visit.position for group in shown_groups(intake.ledger, intake.config, selection)]


# ---- which groups


def test_the_newest_step_comes_first_and_the_one_before_fills_up(config: RunConfig, open_intake: OpenIntake) -> None:
    intake = open_intake(config)
    train(intake, [SOME, SOME], [SOME, SOME], [SOME, SOME])
    assert positions(intake, Selection(count=2)) == [4, 5]
    assert positions(intake, Selection(count=3)) in ([2, 4, 5], [3, 4, 5])
    assert positions(intake, Selection(count=99)) == [0, 1, 2, 3, 4, 5]


def test_a_seed_chooses_the_same_groups_again_and_another_seed_others(
    config: RunConfig, open_intake: OpenIntake
) -> None:
    intake = open_intake(config)
    train(intake, [SOME, SOME])
    by_seed = [positions(intake, Selection(count=1, seed=seed)) for seed in range(8)]
    assert by_seed == [positions(intake, Selection(count=1, seed=seed)) for seed in range(8)]
    assert sorted(map(tuple, {tuple(chosen) for chosen in by_seed})) == [(0,), (1,)]


@pytest.mark.parametrize(("outcome", "expected"), [("correct", [0, 3]), ("wrong", [1]), ("mixed", [2])])
def test_groups_are_told_apart_by_how_many_responses_are_right(
    config: RunConfig, open_intake: OpenIntake, outcome: Outcome, expected: list[int]
) -> None:
    intake = open_intake(config)
    train(intake, [ALL, NONE], [SOME, ALL])
    assert positions(intake, Selection(outcome=outcome, count=99)) == expected


def test_a_step_is_counted_as_in_the_metrics(config: RunConfig, open_intake: OpenIntake) -> None:
    intake = open_intake(config)
    train(intake, [SOME, SOME], [SOME, SOME])
    assert positions(intake, Selection(step=1)) == [0, 1]
    assert [group.step for group in shown_groups(intake.ledger, config, Selection(step=2))] == [2, 2]


def test_groups_that_no_step_has_yet_come_last(config: RunConfig, open_intake: OpenIntake) -> None:
    intake = open_intake(config)
    version = publish(intake, 0)
    lease = intake.grant(b"a", now=0.0)
    assert lease is not None
    intake.accept(b"a", answer(lease, version, SOME))
    (group,) = shown_groups(intake.ledger, config, Selection())
    assert (group.step, group.visit.state, group.lags) == (None, "accepted", None)


def test_visits_of_a_prompt_are_found_by_the_beginning_of_its_id(config: RunConfig, open_intake: OpenIntake) -> None:
    intake = open_intake(config, num_prompts=4)
    train(intake, *[[SOME, SOME]] * 6)
    prompt_id = "prompt-2"
    groups = shown_groups(intake.ledger, config, Selection(prompt=prompt_id, count=2))
    assert [(group.visit.prompt_id, group.visit.visit) for group in groups] == [(prompt_id, 2), (prompt_id, 3)]
    with pytest.raises(
        ConfigError, match=r"several ids begin so \(prompt-0, prompt-1, prompt-2, prompt-3\); give more"
    ):
        positions(intake, Selection(prompt="prompt-"))


def test_an_id_that_begins_another_one_is_found(config: RunConfig, open_intake: OpenIntake) -> None:
    intake = open_intake(config, num_prompts=16)
    train(intake, *[[SOME, SOME]] * 8)
    (group,) = shown_groups(intake.ledger, config, Selection(prompt="prompt-1"))
    assert group.visit.prompt_id == "prompt-1"


def test_a_visit_without_an_answer_is_shown_by_its_position(config: RunConfig, open_intake: OpenIntake) -> None:
    intake = open_intake(config)
    publish(intake, 0)
    intake.grant(b"a", now=0.0)
    (group,) = shown_groups(intake.ledger, config, Selection(position=0))
    assert (group.visit.state, group.responses, group.is_released) == ("leased", (), False)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection(position=9), "position 9: no lease was issued for it; the newest is 1"),
        (Selection(step=2), "step 2: no batch was made for it; the newest is step 1"),
        (Selection(step=0), "step 0: no batch was made for it; the newest is step 1"),
        (Selection(prompt="x"), "prompt x: no prompt that was visited has an id that begins so"),
    ],
)
def test_what_is_not_there_is_refused_in_words(
    config: RunConfig, open_intake: OpenIntake, selection: Selection, message: str
) -> None:
    intake = open_intake(config)
    train(intake, [SOME, SOME])
    with pytest.raises(ConfigError, match=message):
        positions(intake, selection)


# ---- what is said of a group


def test_a_group_has_its_texts_answers_reasons_rewards_and_advantages(
    config: RunConfig, open_intake: OpenIntake
) -> None:
    intake = open_intake(config)
    train(intake, [SOME, ALL], text=r"It is \boxed{{index}}")
    first, second = shown_groups(intake.ledger, config, Selection(step=1))
    assert (first.problem, first.reference) == (f"problem {first.reference}", first.visit.prompt_id.split("-")[1])
    right, wrong = first.responses
    assert (right.is_correct, right.reason, right.answer, right.reward) == (True, "equal", "0", 1.0)
    assert (wrong.is_correct, wrong.reason, wrong.answer, wrong.reward) == (False, "different", "1", 0.0)
    # (1, 0) has mean 0.5 and standard deviation √0.5.
    assert right.advantage == -wrong.advantage == pytest.approx(0.5 / 0.5**0.5)
    assert [response.advantage for response in second.responses] == [0.0, 0.0]
    assert wrong.response is not None
    assert (wrong.response.text, wrong.response.finish_reason) == (r"It is \boxed{1}", "stop")


def test_statistics_are_those_of_the_visits_up_to_the_group(config: RunConfig, open_intake: OpenIntake) -> None:
    intake = open_intake(config, num_prompts=4)
    train(intake, [SOME, SOME], [SOME, SOME], [ALL, ALL], [ALL, ALL])
    first, second = shown_groups(intake.ledger, config, Selection(prompt="prompt-0"))
    assert first.stats == RewardStats().with_rewards(SOME)
    assert second.stats == first.stats.with_rewards(ALL) == intake.ledger.reward_stats("prompt-0")
    assert (second.stats.mean, second.std) == (0.75, 0.5)


def test_lags_are_between_the_weights_and_the_step_that_trains(config: RunConfig, open_intake: OpenIntake) -> None:
    intake = open_intake(config)
    version = publish(intake, 0)
    leases = [intake.grant(b"a", now=0.0) for _ in range(4)]
    for lease in leases:
        assert lease is not None
        intake.accept(b"a", answer(lease, version, SOME))
    assert intake.commit_batch(0)
    assert intake.commit_batch(1)
    assert [group.lags for group in shown_groups(intake.ledger, config, Selection(count=4))] == [
        (0, 0),
        (0, 0),
        (1, 1),
        (1, 1),
    ]


def test_lags_of_a_batch_of_two_updates_are_those_of_its_start(tmp_path: Path, open_intake: OpenIntake) -> None:
    config = make_config(tmp_path, updates=2)
    intake = open_intake(config)
    version = publish(intake, 0)
    for _ in range(4):
        lease = intake.grant(b"a", now=0.0)
        assert lease is not None
        intake.accept(b"a", answer(lease, version, SOME))
    assert intake.commit_batch(0)
    assert [group.lags for group in shown_groups(intake.ledger, config, Selection(count=4))] == [(0, 0)] * 4


def test_of_a_deleted_group_rewards_and_advantages_stay(config: RunConfig) -> None:
    intake = make_intake(config, segment_bytes=1)
    train(intake, [SOME, SOME], [SOME, SOME])
    assert intake.ledger.release_segments(oldest_retained_step=1) == [1, 2]
    (group, _) = shown_groups(intake.ledger, config, Selection(step=1))
    (kept, _) = shown_groups(intake.ledger, config, Selection(step=2))
    intake.ledger.close()
    assert (group.is_released, kept.is_released) == (True, False)
    assert [(shown.reward, shown.response, shown.reason) for shown in group.responses] == [
        (1.0, None, None),
        (0.0, None, None),
    ]
    assert group.as_json()["responses"][0] == {
        "correct": True,
        "reason": None,
        "answer": None,
        "reward": 1.0,
        "advantage": group.responses[0].advantage,
        "num_tokens": None,
        "finish_reason": None,
        "segments": None,
        "text": None,
    }


def test_a_ledger_of_an_older_learner_shows_no_problem(config: RunConfig, open_intake: OpenIntake) -> None:
    intake = open_intake(config)
    train(intake, [SOME, SOME])
    intake.ledger._db.execute("DELETE FROM prompts")
    (group, _) = shown_groups(intake.ledger, config, Selection())
    assert (group.problem, group.reference) == (None, None)


def test_of_an_own_reward_the_highest_of_its_range_is_right(tmp_path: Path, open_intake: OpenIntake) -> None:
    config = make_config(tmp_path, grading={"reward": "module:function", "reward_range": (-1.0, 1.0)})
    intake = open_intake(config)
    train(intake, [ALL, (0.5, -1.0)], [(1.0, 0.5), (0.5, 0.25)])
    assert positions(intake, Selection(outcome="correct", count=99)) == [0]
    assert positions(intake, Selection(outcome="wrong", count=99)) == [1, 3]
    shown = next(shown_groups(intake.ledger, config, Selection(position=2)))
    assert [response.is_correct for response in shown.responses] == [True, False]
    assert shown.stats == RewardStats().with_rewards((1.0, 0.5))
