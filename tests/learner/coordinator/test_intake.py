"""Leases out and groups in, by hand; tests/learner/ledger/test_properties.py drives the same at random."""

import math
from pathlib import Path

import pytest

from dcpo_async.algorithm import fading_advantages, smooth_advantages
from dcpo_async.algorithm.reward_stats import RewardStats
from dcpo_async.errors import ConfigError, LedgerError
from dcpo_async.protocol.messages import Envelope, LeaseName
from dcpo_async.records import Lease
from learner.coordinator.intake import Intake
from learner.scheduling.leases import SlotState
from tests.learner.small_run import OpenIntake, answer, make_config, publish


def leases_of(intake: Intake, session: bytes = b"a", at_most: int = 100) -> list[Lease]:
    """Everything that the gate gives out now, at most `at_most`."""
    granted: list[Lease] = []
    while len(granted) < at_most and (lease := intake.grant(session, now=0.0)) is not None:
        granted.append(lease)
    return granted


def outcome(intake: Intake, group: Envelope, session: bytes = b"a") -> str:
    return intake.accept(session, group).outcome


# ---- the gate


def test_nothing_is_leased_before_anything_is_published(tmp_path: Path, open_intake: OpenIntake) -> None:
    intake = open_intake(make_config(tmp_path))
    assert intake.grant(b"a", now=0.0) is None


def test_the_first_weights_serve_max_lag_plus_one_steps(tmp_path: Path, open_intake: OpenIntake) -> None:
    intake = open_intake(make_config(tmp_path, groups_per_step=2, max_lag=2))
    publish(intake, step=0)
    assert len(leases_of(intake)) == 6


def test_a_lease_carries_the_oldest_version_that_keeps_its_lag(tmp_path: Path, open_intake: OpenIntake) -> None:
    intake = open_intake(make_config(tmp_path, groups_per_step=2, max_lag=1))
    first = publish(intake, step=0)
    leases = leases_of(intake)
    for lease in leases[:2]:
        intake.accept(b"a", answer(lease, first))
    assert intake.commit_batch(0)
    # Numbers 0 and 1 are out; 2 and 3 may train at step 2 and need the weights of step 1.
    assert leases_of(intake) == []
    second = publish(intake, step=1)
    assert [lease.min_version for lease in leases_of(intake)] == [second, second]
    assert [lease.min_version for lease in leases] == [first] * 4


def test_a_visit_leased_again_needs_newer_weights_only_if_its_step_does(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    intake = open_intake(make_config(tmp_path, groups_per_step=2, max_lag=1))
    first = publish(intake, step=0)
    leases = leases_of(intake)
    for lease in (leases[1], leases[2]):
        intake.accept(b"a", answer(lease, first))
    assert intake.commit_batch(0)
    second = publish(intake, step=1)
    intake.release_session(b"a")
    again = leases_of(intake, b"b", at_most=2)
    # It was passed over for step 0 and trains at step 1, for which step 0 is still young enough.
    assert [(lease.position, lease.attempt, lease.min_version) for lease in again] == [(0, 2, first), (3, 2, first)]
    assert [lease.min_version for lease in leases_of(intake)] == [second, second]


def test_no_lease_goes_out_for_a_step_after_the_last(tmp_path: Path, open_intake: OpenIntake) -> None:
    intake = open_intake(make_config(tmp_path, groups_per_step=2, max_lag=4, training={"max_steps": 2}))
    publish(intake, step=0)
    assert len(leases_of(intake)) == 4


def test_the_last_batch_of_two_updates_can_be_filled(tmp_path: Path, open_intake: OpenIntake) -> None:
    intake = open_intake(make_config(tmp_path, groups_per_step=2, max_lag=4, updates=2, training={"max_steps": 2}))
    version = publish(intake, step=0)
    for lease in leases_of(intake):
        intake.accept(b"a", answer(lease, version))
    assert intake.commit_batch(0)
    assert intake.ledger.step_positions(1) == [2, 3]


def test_without_lag_a_batch_of_two_updates_is_generated_by_the_weights_of_its_start(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    intake = open_intake(make_config(tmp_path, groups_per_step=2, max_lag=0, updates=2))
    first = publish(intake, step=0)
    leases = leases_of(intake)
    assert len(leases) == 4
    for lease in leases:
        intake.accept(b"a", answer(lease, first))
    assert intake.commit_batch(0)
    assert leases_of(intake) == []
    second = publish(intake, step=2)
    assert [lease.min_version for lease in leases_of(intake)] == [second] * 4


def test_what_was_generated_is_counted_over_restarts(tmp_path: Path, open_intake: OpenIntake) -> None:
    config = make_config(tmp_path, groups_per_step=2)
    for number in (1, 2):
        intake = open_intake(config)
        version = publish(intake, step=0)
        for _ in range(2):
            lease = intake.grant(b"a", 0.0)
            assert lease is not None
            intake.accept(b"a", answer(lease, version, num_tokens=3))
        assert (intake.generated_responses, intake.generated_tokens) == (number * 4, number * 12)
        intake.ledger.close()


def test_tokens_of_a_run_that_began_without_counting_them_stay_unknown(tmp_path: Path, open_intake: OpenIntake) -> None:
    config = make_config(tmp_path)
    intake = open_intake(config)
    version = publish(intake, step=0)
    for lease in leases_of(intake)[:1]:
        intake.accept(b"a", answer(lease, version))
    intake.ledger._db.execute("DELETE FROM meta WHERE key = 'generated_tokens'")
    intake.ledger.close()
    intake = open_intake(config)
    assert (intake.generated_responses, intake.generated_tokens) == (2, None)


def test_versions_that_the_trainer_repeats_after_a_crash_are_not_offered_before_it_has_caught_up(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    intake = trained_to_step(open_intake(make_config(tmp_path, groups_per_step=1, max_lag=1)), 3)
    newest = intake.published[-1]
    intake.resume(1)
    assert [version.step for version in intake.published if version.step > 1] == []
    offered = [intake.publish(intake.grant_version(step), step) for step in (1, 2)]
    assert offered == [False, False]
    assert intake.grant(b"a", now=0.0) is None
    version = publish(intake, step=3)
    assert version > newest.weights_version
    lease = intake.grant(b"a", now=0.0)
    assert lease is not None
    assert lease.min_version == version


def test_with_rare_publications_the_last_one_before_new_groups_are_needed_is_offered(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    config = make_config(tmp_path, groups_per_step=1, max_lag=2, lag={"publish_interval": 3})
    intake = trained_to_step(open_intake(config), 5)
    intake.resume(0)
    offered = {step: intake.publish(intake.grant_version(step), step) for step in (0, 3)}
    assert offered == {0: False, 3: True}
    assert intake.grant(b"a", now=0.0) is not None


def test_a_long_run_remembers_only_the_versions_that_a_lease_can_ask_for(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    intake = trained_to_step(open_intake(make_config(tmp_path, groups_per_step=1, max_lag=2)), 20)
    assert len(intake.published) <= 4


def trained_to_step(intake: Intake, last_step: int) -> Intake:
    train(intake, 0, last_step)
    return intake


def train(intake: Intake, first_step: int, last_step: int) -> None:
    """Train from one step to the other on groups that are leased one batch at a time, and answered at once."""
    for step in range(first_step, last_step):
        if step % intake.config.lag.publish_interval == 0:
            publish(intake, step)
        for lease in leases_of(intake, at_most=intake.gate.groups_per_batch):
            intake.accept(b"a", answer(lease, intake.published[-1].weights_version))
        assert intake.commit_batch(step)


# ---- prompts and visits


def test_visits_of_a_prompt_are_numbered_by_epoch_and_never_open_twice(tmp_path: Path, open_intake: OpenIntake) -> None:
    intake = open_intake(make_config(tmp_path, groups_per_step=1, max_lag=1), num_prompts=2)
    version = publish(intake, step=0)
    first, second = leases_of(intake)
    intake.accept(b"a", answer(second, version))
    intake.commit_batch(0)
    publish(intake, step=1)
    # Position 2 is the first prompt again, whose first visit is still open.
    assert first.position == 0
    assert intake.grant(b"a", now=0.0) is None
    intake.accept(b"a", answer(first, version))
    third = intake.grant(b"a", now=0.0)
    assert third is not None
    assert (third.prompt_id, third.visit) == (first.prompt_id, 2)


def test_a_data_set_smaller_than_the_admission_window_is_refused(tmp_path: Path, open_intake: OpenIntake) -> None:
    with pytest.raises(ConfigError, match="3 usable prompts, fewer than the admission window of 4"):
        open_intake(make_config(tmp_path, groups_per_step=2, max_lag=1), num_prompts=3)


def test_a_prompt_is_quarantined_after_max_failures_of_its_own_fault_and_stays_so_after_a_restart(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    config = make_config(tmp_path, groups_per_step=1, max_lag=1, actor={"max_failures": 2})
    intake = open_intake(config, num_prompts=3)
    publish(intake, step=0)
    lease = leases_of(intake, at_most=1)[0]
    intake.fail(b"a", lease.position, lease.attempt, "the engine died", is_prompts_fault=False)
    for attempt in (2, 3):
        again = leases_of(intake, at_most=1)[0]
        assert (again.position, again.attempt) == (lease.position, attempt)
        intake.fail(b"a", again.position, again.attempt, "no tokens", is_prompts_fault=True)
    intake.ledger.close()
    intake = open_intake(config, num_prompts=3)
    assert len(intake.quarantined) == 1
    publish(intake, step=0)
    for _ in range(4):
        leases = leases_of(intake)
        assert lease.prompt_id not in [other.prompt_id for other in leases]
        for other in leases:
            intake.accept(b"a", answer(other, 1))
    # Positions 3 and 6 are later visits of the same prompt, or two others of its epoch.
    assert {row.prompt_id for row in intake.ledger.visits("state = 'quarantined'")} == {lease.prompt_id}


def test_failures_are_remembered_over_a_restart(tmp_path: Path, open_intake: OpenIntake) -> None:
    config = make_config(tmp_path, actor={"max_failures": 2})
    intake = open_intake(config)
    publish(intake, step=0)
    lease = leases_of(intake, at_most=1)[0]
    intake.fail(b"a", lease.position, lease.attempt, "no tokens", is_prompts_fault=True)
    intake.ledger.close()
    intake = open_intake(config)
    publish(intake, step=0)
    intake.release_unlisted(now=100.0)
    again = leases_of(intake, at_most=1)[0]
    intake.fail(b"a", again.position, again.attempt, "no tokens", is_prompts_fault=True)
    assert len(intake.quarantined) == 1


def test_when_every_prompt_is_quarantined_the_run_ends_with_the_reason(tmp_path: Path, open_intake: OpenIntake) -> None:
    config = make_config(tmp_path, groups_per_step=1, max_lag=1, actor={"max_failures": 1})
    intake = open_intake(config, num_prompts=2)
    publish(intake, step=0)
    for lease in leases_of(intake):
        intake.fail(b"a", lease.position, lease.attempt, "no tokens", is_prompts_fault=True)
    with pytest.raises(ConfigError, match="all 2 prompts failed 1 times"):
        intake.grant(b"a", now=0.0)


def test_the_order_of_prompts_stays_when_max_lag_changes(tmp_path: Path, open_intake: OpenIntake) -> None:
    def trained(folder: str, *, max_lag: int, first_step: int, last_step: int) -> list[str]:
        intake = open_intake(make_config(tmp_path / folder, groups_per_step=1, max_lag=max_lag), num_prompts=9)
        train(intake, first_step, last_step)
        found = [row.prompt_id for row in intake.ledger.visits()]
        intake.ledger.close()
        return found

    unchanged = trained("unchanged", max_lag=4, first_step=0, last_step=25)
    trained("changed", max_lag=4, first_step=0, last_step=10)
    changed = trained("changed", max_lag=1, first_step=10, last_step=25)
    assert len(changed) == 25
    assert changed == unchanged


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
    intake.fail(b"a", lease.position, lease.attempt, "no tokens", is_prompts_fault=True)
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
    assert intake.ledger.num_groups() == 0


def test_a_group_of_empty_responses_counts_with_the_weights_of_its_lease(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    intake = open_intake(make_config(tmp_path, groups_per_step=1, max_lag=0))
    publish(intake, step=0)
    lease = leases_of(intake)[0]
    assert outcome(intake, answer(lease, 1, rewards=(0.0, 0.0), num_tokens=0)) == "accepted"
    assert intake.commit_batch(0)
    assert [len(response.token_ids) for response in intake.step_groups(0)[0].group.responses] == [0, 0]


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
    assert [group.group.position for group in intake.step_groups(0)] == [0, 1]
    assert [slot.position for slot in intake.table.open_slots] == [2, 3]


def test_a_step_reads_back_what_was_accepted(tmp_path: Path, open_intake: OpenIntake) -> None:
    intake = open_intake(make_config(tmp_path, groups_per_step=1))
    version = publish(intake, step=0)
    lease = leases_of(intake)[0]
    group = answer(lease, version)
    intake.accept(b"a", group)
    intake.commit_batch(0)
    (entry,) = intake.step_groups(0)
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
    assert [row.position for row in intake.ledger.visits("state = 'too_old'")] == [2, 3]
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
    assert [row.position for row in open_intake(config).ledger.visits("state = 'discarded'")] == [0]


def test_overlong_responses_lose_reward_and_the_message_keeps_its_own(tmp_path: Path, open_intake: OpenIntake) -> None:
    config = make_config(tmp_path, groups_per_step=1, algorithm={"overlong_buffer_tokens": 4})
    intake = open_intake(config)
    version = publish(intake, step=0)
    (lease,) = leases_of(intake, at_most=1)
    intake.accept(b"a", answer(lease, version, rewards=(1.0, 0.0), num_tokens=6))
    assert intake.ledger.read_group(0).rewards == (0.5, -0.5)
    assert intake.commit_batch(0)
    assert intake.step_groups(0)[0].group.rewards == (1.0, 0.0)


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


# ---- restarts


def test_after_a_restart_leases_wait_for_their_holders_and_then_go_out_again(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    config = make_config(tmp_path, groups_per_step=1)
    intake = open_intake(config)
    publish(intake, step=0)
    first, second = leases_of(intake)
    intake.ledger.close()
    intake = open_intake(config)
    intake.start_clock(now=1000.0)
    intake.reclaim(b"a", [LeaseName(position=first.position, attempt=first.attempt)], now=1001.0)
    publish(intake, step=0)
    assert intake.grant(b"b", now=1002.0) is None
    intake.table.heartbeat(b"a", [LeaseName(position=first.position, attempt=first.attempt)], now=1010.0)
    assert intake.release_unlisted(now=1016.0) == 1
    again = intake.grant(b"b", now=1016.0)
    assert again is not None
    assert (again.position, again.attempt) == (second.position, 2)


def test_a_batch_committed_before_a_kill_is_read_back_after_it(tmp_path: Path, open_intake: OpenIntake) -> None:
    config = make_config(tmp_path, groups_per_step=1)
    intake = open_intake(config)
    version = publish(intake, step=0)
    for lease in leases_of(intake):
        intake.accept(b"a", answer(lease, version))
    intake.commit_batch(0)
    before = intake.step_groups(0)
    intake.ledger.close()
    intake = open_intake(config)
    assert intake.commit_batch(0)
    after = intake.step_groups(0)
    assert [(e.group.position, e.advantages, e.visit) for e in after] == [
        (e.group.position, e.advantages, e.visit) for e in before
    ]
