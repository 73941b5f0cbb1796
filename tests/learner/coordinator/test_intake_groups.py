"""What becomes of a group that comes in, by hand; tests/learner/ledger/test_properties.py drives the same at random."""

import math
from pathlib import Path

import pytest

from dcpo_async.algorithm import fading_advantages, smooth_advantages
from dcpo_async.algorithm.reward_stats import RewardStats
from dcpo_async.errors import LedgerError
from dcpo_async.records import Lease
from learner.scheduling.leases import SlotState
from tests.learner.small_run import OpenIntake, answer, leases_of, make_config, outcome, publish, stored_groups

# ---- groups


def test_a_group_counts_once_with_its_advantages_and_statistics(tmp_path: Path, open_intake: OpenIntake) -> None:
    intake = open_intake(make_config(tmp_path))
    version = publish(intake, step=0)
    lease = leases_of(intake, at_most=1)[0]
    group = answer(lease, version, rewards=(1.0, 0.0))
    assert [outcome(intake, group) for _ in range(3)] == ["accepted", "duplicate", "duplicate"]
    advantages, stats = smooth_advantages([1.0, 0.0], RewardStats())
    assert intake.ledger.reward_stats(lease.prompt_id) == stats
    assert list(intake.ledger.read_group(lease.position).advantages) == advantages
    assert (intake.counts["groups_accepted"], intake.counts["groups_duplicate"]) == (1, 2)


def test_a_later_visit_is_judged_against_all_rewards_of_its_prompt(tmp_path: Path, open_intake: OpenIntake) -> None:
    intake = open_intake(make_config(tmp_path, groups_per_step=1, max_lag=0), num_prompts=1)
    version = publish(intake, step=0)
    intake.accept(b"a", answer(leases_of(intake)[0], version, rewards=(1.0, 0.0)))
    intake.commit_batch(0)
    version = publish(intake, step=1)
    intake.accept(b"a", answer(leases_of(intake)[0], version, rewards=(1.0, 1.0)))
    _, after_first = smooth_advantages([1.0, 0.0], RewardStats())
    advantages, _ = smooth_advantages([1.0, 1.0], after_first)
    assert list(intake.ledger.read_group(1).advantages) == advantages
    assert advantages[0] > 0


def test_the_group_of_a_zombie_is_superseded_and_changes_nothing(tmp_path: Path, open_intake: OpenIntake) -> None:
    intake = open_intake(make_config(tmp_path))
    version = publish(intake, step=0)
    old = leases_of(intake, b"zombie", at_most=1)[0]
    intake.release_session(b"zombie")
    new = leases_of(intake, b"b", at_most=1)[0]
    assert (new.position, new.attempt) == (old.position, 2)
    assert outcome(intake, answer(old, version), b"zombie") == "superseded"
    assert outcome(intake, answer(new, version), b"b") == "accepted"
    assert outcome(intake, answer(old, version), b"zombie") == "superseded"
    assert intake.ledger.reward_stats(old.prompt_id).visits == 1


def test_a_zombie_of_a_trained_group_is_superseded_and_a_repetition_a_duplicate(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    intake = open_intake(make_config(tmp_path, groups_per_step=1))
    version = publish(intake, step=0)
    old = leases_of(intake, b"zombie", at_most=1)[0]
    intake.release_session(b"zombie")
    new = leases_of(intake, b"b", at_most=1)[0]
    intake.accept(b"b", answer(new, version))
    assert intake.commit_batch(0)
    assert outcome(intake, answer(new, version), b"b") == "duplicate"
    assert outcome(intake, answer(old, version), b"zombie") == "superseded"


def test_the_group_of_a_quarantined_visit_is_superseded(tmp_path: Path, open_intake: OpenIntake) -> None:
    intake = open_intake(make_config(tmp_path, actor={"max_failures": 1}))
    version = publish(intake, step=0)
    lease = leases_of(intake, at_most=1)[0]
    intake.fail(b"a", lease.position, lease.attempt, "no tokens", is_prompts_fault=True, now=0.0)
    assert outcome(intake, answer(lease, version)) == "superseded"
    assert intake.ledger.reward_stats(lease.prompt_id).visits == 0


def test_the_work_of_a_lost_session_counts_as_long_as_nobody_else_has_the_lease(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    intake = open_intake(make_config(tmp_path))
    version = publish(intake, step=0)
    lease = leases_of(intake, at_most=1)[0]
    intake.release_session(b"a")
    assert outcome(intake, answer(lease, version)) == "accepted"
    assert [other.position for other in leases_of(intake, at_most=1)] == [1]


def test_the_group_of_somebody_elses_lease_is_refused_and_the_lease_stays_where_it_is(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    intake = open_intake(make_config(tmp_path))
    version = publish(intake, step=0)
    lease = leases_of(intake, b"a", at_most=1)[0]
    ack = intake.accept(b"thief", answer(lease, version))
    assert (ack.outcome, ack.detail) == ("invalid", "the lease was never issued, or another session holds it")
    slot = intake.table.get(lease.position)
    assert slot is not None
    assert (slot.state, slot.holder) == (SlotState.LEASED, b"a")


def test_the_group_of_a_lease_that_was_never_issued_is_refused(tmp_path: Path, open_intake: OpenIntake) -> None:
    intake = open_intake(make_config(tmp_path))
    version = publish(intake, step=0)
    lease = leases_of(intake)[-1]
    forged = Lease(99, 1, lease.prompt_id, 1, version, lease.prompt_token_ids, lease.answer)
    assert outcome(intake, answer(forged, version)) == "invalid"


@pytest.mark.parametrize(
    ("version", "rewards", "num_tokens", "fault"),
    [
        (1, (0.7, 0.0), 2, "reward 0.7"),
        (1, (1.0, 0.0, 0.0), 2, "a group has 2 responses"),
        (9, (1.0, 0.0), 2, "weights versions [9] were never published"),
        (1, (1.0, 0.0), 9, "at most 8 are allowed"),
    ],
)
def test_an_unsound_group_is_refused_and_counts_for_nothing(
    tmp_path: Path,
    open_intake: OpenIntake,
    version: int,
    rewards: tuple[float, ...],
    num_tokens: int,
    fault: str,
) -> None:
    intake = open_intake(make_config(tmp_path))
    publish(intake, step=0)
    lease = leases_of(intake, at_most=1)[0]
    ack = intake.accept(b"a", answer(lease, version, rewards, num_tokens))
    assert ack.outcome == "invalid"
    assert fault in ack.detail
    assert intake.ledger.num_groups == 0


def test_a_group_of_empty_responses_counts_with_the_weights_of_its_lease(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    intake = open_intake(make_config(tmp_path, groups_per_step=1, max_lag=0))
    publish(intake, step=0)
    lease = leases_of(intake)[0]
    assert outcome(intake, answer(lease, 1, rewards=(0.0, 0.0), num_tokens=0)) == "accepted"
    assert intake.commit_batch(0)
    assert [len(response.token_ids) for response in stored_groups(intake, 0)[0].group.responses] == [0, 0]


def test_a_group_under_a_version_that_was_granted_but_not_announced_yet_is_sound(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    intake = open_intake(make_config(tmp_path))
    publish(intake, step=0)
    lease = leases_of(intake, at_most=1)[0]
    granted = intake.grant_version(step=1)
    assert outcome(intake, answer(lease, [1, granted])) == "accepted"


# ---- batches


def test_a_batch_is_the_same_however_often_it_is_asked_for(tmp_path: Path, open_intake: OpenIntake) -> None:
    intake = open_intake(make_config(tmp_path, groups_per_step=2))
    version = publish(intake, step=0)
    for lease in reversed(leases_of(intake)):
        intake.accept(b"a", answer(lease, version))
    assert [intake.commit_batch(0) for _ in range(3)] == [True] * 3
    assert [group.group.position for group in stored_groups(intake, 0)] == [0, 1]
    assert [slot.position for slot in intake.table.open_slots] == [2, 3]


def test_a_step_reads_back_what_was_accepted(tmp_path: Path, open_intake: OpenIntake) -> None:
    intake = open_intake(make_config(tmp_path, groups_per_step=1))
    version = publish(intake, step=0)
    lease = leases_of(intake)[0]
    group = answer(lease, version)
    intake.accept(b"a", group)
    intake.commit_batch(0)
    (entry,) = stored_groups(intake, 0)
    assert entry.prompt_token_ids.tolist() == lease.prompt_token_ids.tolist()
    assert entry.visit == 1
    assert entry.group.rewards == (1.0, 0.0)
    assert [response.token_ids.tolist() for response in entry.group.responses] == [[0, 1], [0, 1]]
    assert [response.segments for response in entry.group.responses] == [((version, 2),)] * 2


def test_groups_beyond_a_lowered_max_lag_are_not_trained_but_stay_counted(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    intake = open_intake(make_config(tmp_path, groups_per_step=1, max_lag=3))
    version = publish(intake, step=0)
    leases = leases_of(intake)
    for lease in leases:
        intake.accept(b"a", answer(lease, version))
    assert intake.commit_batch(0)
    intake.ledger.close()
    intake = open_intake(make_config(tmp_path, groups_per_step=1, max_lag=1))
    # Steps 1 (lag 1) may train, the two behind it would lag by 2 and 3.
    assert intake.commit_batch(1)
    assert intake.ledger.step_positions(1) == [1]
    assert [row.position for row in intake.ledger.visits("too_old")] == [2, 3]
    assert intake.counts["groups_too_old"] == 2
    assert intake.ledger.reward_stats(leases[3].prompt_id).visits == 1


def test_dynamic_sampling_discards_groups_of_equal_rewards_and_later_visits_take_their_place(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    config = make_config(tmp_path, algorithm={"advantage": "group", "dynamic_sampling": True})
    intake = open_intake(config)
    version = publish(intake, step=0)
    leases = leases_of(intake, at_most=2)
    assert outcome(intake, answer(leases[0], version, rewards=(1.0, 1.0))) == "accepted"
    assert outcome(intake, answer(leases[0], version, rewards=(1.0, 1.0))) == "duplicate"
    intake.accept(b"a", answer(leases[1], version))
    assert not intake.commit_batch(0)
    (third,) = leases_of(intake, at_most=1)
    intake.accept(b"a", answer(third, version))
    assert intake.commit_batch(0)
    assert intake.ledger.step_positions(0) == [1, 2]
    assert intake.counts["groups_discarded"] == 1
    assert intake.ledger.reward_stats(leases[0].prompt_id).count == 2
    intake.ledger.close()
    assert [row.position for row in open_intake(config).ledger.visits("discarded")] == [0]


def test_overlong_responses_lose_reward_and_the_message_keeps_its_own(tmp_path: Path, open_intake: OpenIntake) -> None:
    config = make_config(tmp_path, groups_per_step=1, algorithm={"overlong_buffer_tokens": 4})
    intake = open_intake(config)
    version = publish(intake, step=0)
    (lease,) = leases_of(intake, at_most=1)
    intake.accept(b"a", answer(lease, version, rewards=(1.0, 0.0), num_tokens=6))
    assert intake.ledger.read_group(0).rewards == (0.5, -0.5)
    assert intake.commit_batch(0)
    assert stored_groups(intake, 0)[0].group.rewards == (1.0, 0.0)


def test_grpo_judges_a_later_visit_by_its_own_rewards_alone(tmp_path: Path, open_intake: OpenIntake) -> None:
    config = make_config(tmp_path, groups_per_step=1, max_lag=0, algorithm={"advantage": "group"})
    intake = open_intake(config, num_prompts=1)
    for step, rewards in enumerate([(1.0, 0.0), (1.0, 1.0)]):
        version = publish(intake, step=step)
        (lease,) = leases_of(intake)
        intake.accept(b"a", answer(lease, version, rewards=rewards))
        assert intake.commit_batch(step)
    assert intake.ledger.read_group(1).advantages == (0.0, 0.0)


def test_a_half_life_weighs_the_visits_in_the_ledger_also_after_a_restart_with_another_one(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    visits = [(1.0, 1.0), (1.0, 0.0), (0.0, 0.0)]
    for step, half_life_visits in enumerate([None, 2.0, 0.5]):
        algorithm = {"half_life_visits": half_life_visits}
        config = make_config(tmp_path, groups_per_step=1, max_lag=0, algorithm=algorithm)
        intake = open_intake(config, num_prompts=1)
        version = publish(intake, step=step)
        (lease,) = leases_of(intake)
        assert outcome(intake, answer(lease, version, rewards=visits[step])) == "accepted"
        assert intake.commit_batch(step)
        found = intake.ledger.read_group(step).advantages
        intake.ledger.close()
        expected = fading_advantages(visits[: step + 1], half_life_visits or math.inf)
        assert found == tuple(expected)
    # w = 1/16, 1/4, 1: μ = 1/7, σ² = 0.1978, A_total = −0.3212, W = 1.3125.
    assert found[0] == pytest.approx(-0.07648, abs=5e-6)


def test_discarded_visits_count_in_a_half_life_and_statistics_stay_those_of_all_visits(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    algorithm = {"half_life_visits": 1.0, "dynamic_sampling": True}
    intake = open_intake(make_config(tmp_path, groups_per_step=1, max_lag=0, algorithm=algorithm), num_prompts=1)
    version = publish(intake, step=0)
    visits = [(1.0, 1.0), (1.0, 0.0)]
    for rewards in visits:
        (lease,) = leases_of(intake, at_most=1)
        intake.accept(b"a", answer(lease, version, rewards=rewards))
    assert [row.state for row in intake.ledger.visits()] == ["discarded", "accepted"]
    assert intake.ledger.read_group(1).advantages == tuple(fading_advantages(visits, 1.0))
    assert intake.ledger.reward_stats("prompt-0") == RewardStats().with_rewards((1.0, 1.0)).with_rewards((1.0, 0.0))


def test_a_trainer_whose_checkpoint_is_ahead_of_the_ledger_is_refused(tmp_path: Path, open_intake: OpenIntake) -> None:
    intake = open_intake(make_config(tmp_path))
    with pytest.raises(LedgerError, match="asks for step 7, the ledger ends before step 0"):
        intake.commit_batch(7)


def test_another_number_of_updates_needs_another_folder(tmp_path: Path, open_intake: OpenIntake) -> None:
    open_intake(make_config(tmp_path)).ledger.close()
    with pytest.raises(LedgerError, match="has updates_per_batch 1, now it is 2"):
        open_intake(make_config(tmp_path, updates=2))
