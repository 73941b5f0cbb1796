"""Leases out, and what a restart finds, by hand; tests/learner/ledger/test_properties.py drives the same at random."""

from pathlib import Path

import pytest

from dcpo_async.errors import ConfigError
from dcpo_async.records import LeaseName
from learner.coordinator.intake import Intake
from tests.learner.small_run import OpenIntake, answer, leases_of, make_config, publish, stored_groups

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
        assert (intake.summary()["generated_responses"], intake.generated_tokens) == (number * 4, number * 12)
        intake.ledger.close()


def test_tokens_of_a_run_that_began_without_counting_them_stay_unknown(tmp_path: Path, open_intake: OpenIntake) -> None:
    config = make_config(tmp_path)
    intake = open_intake(config)
    version = publish(intake, step=0)
    for lease in leases_of(intake)[:1]:
        intake.accept(b"a", answer(lease, version))
    rows = intake.ledger._rows
    ((digest,),) = rows.query("SELECT row_digest FROM meta WHERE key = 'generated_tokens'")
    rows.query("DELETE FROM meta WHERE key = 'generated_tokens'")
    rows._num_rows["meta"] -= 1
    rows._sums["meta"] -= digest
    intake.ledger.close()
    intake = open_intake(config)
    assert (intake.summary()["generated_responses"], intake.generated_tokens) == (2, None)


def test_versions_that_the_trainer_repeats_after_a_crash_are_not_offered_before_it_has_caught_up(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    intake = trained_to_step(open_intake(make_config(tmp_path, groups_per_step=1, max_lag=1)), 3)
    newest = intake.versions.published[-1]
    intake.resume(1)
    assert [version.step for version in intake.versions.published if version.step > 1] == []
    offered = [intake.publish(intake.grant_version(step)) for step in (1, 2)]
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
    offered = {step: intake.publish(intake.grant_version(step)) for step in (0, 3)}
    assert offered == {0: False, 3: True}
    assert intake.grant(b"a", now=0.0) is not None


def test_a_long_run_remembers_only_the_versions_that_a_lease_can_ask_for(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    intake = trained_to_step(open_intake(make_config(tmp_path, groups_per_step=1, max_lag=2)), 20)
    assert len(intake.versions.published) <= 4


def trained_to_step(intake: Intake, last_step: int) -> Intake:
    train(intake, 0, last_step)
    return intake


def train(intake: Intake, first_step: int, last_step: int) -> None:
    """Train from one step to the other on groups that are leased one batch at a time, and answered at once."""
    for step in range(first_step, last_step):
        if step % intake.config.lag.publish_interval == 0:
            publish(intake, step)
        for lease in leases_of(intake, at_most=intake.config.training.groups_per_step):
            intake.accept(b"a", answer(lease, intake.versions.published[-1].weights_version))
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
    intake.fail(b"a", lease.position, lease.attempt, "the engine died", is_prompts_fault=False, now=0.0)
    for attempt, host in ((2, b"a"), (3, b"b")):
        again = leases_of(intake, host, at_most=1)[0]
        assert (again.position, again.attempt) == (lease.position, attempt)
        intake.fail(host, again.position, again.attempt, "no tokens", is_prompts_fault=True, now=0.0)
    intake.ledger.close()
    intake = open_intake(config, num_prompts=3)
    (row,) = intake.quarantined.values()
    assert (row.prompt_id, row.reason) == (lease.prompt_id, "failed 2 times, on a, b; at last: no tokens")
    publish(intake, step=0)
    for _ in range(4):
        leases = leases_of(intake)
        assert lease.prompt_id not in [other.prompt_id for other in leases]
        for other in leases:
            intake.accept(b"a", answer(other, 1))
    # Positions 3 and 6 are later visits of the same prompt, or two others of its epoch.
    assert {row.prompt_id for row in intake.ledger.visits("quarantined")} == {lease.prompt_id}


def test_failures_are_remembered_over_a_restart(tmp_path: Path, open_intake: OpenIntake) -> None:
    config = make_config(tmp_path, actor={"max_failures": 2})
    intake = open_intake(config)
    publish(intake, step=0)
    lease = leases_of(intake, at_most=1)[0]
    intake.fail(b"a", lease.position, lease.attempt, "no tokens", is_prompts_fault=True, now=0.0)
    intake.ledger.close()
    intake = open_intake(config)
    publish(intake, step=0)
    intake.release_unlisted(now=100.0)
    again = leases_of(intake, at_most=1)[0]
    intake.fail(b"a", again.position, again.attempt, "no tokens", is_prompts_fault=True, now=0.0)
    assert len(intake.quarantined) == 1


def test_when_every_prompt_is_quarantined_the_run_ends_with_the_reason(tmp_path: Path, open_intake: OpenIntake) -> None:
    config = make_config(tmp_path, groups_per_step=1, max_lag=1, actor={"max_failures": 1})
    intake = open_intake(config, num_prompts=2)
    publish(intake, step=0)
    for lease in leases_of(intake):
        intake.fail(b"a", lease.position, lease.attempt, "no tokens", is_prompts_fault=True, now=0.0)
    with pytest.raises(ConfigError, match=r"all 2 prompts are quarantined, .* no tokens; .* `dcpo release .* --all`"):
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
    intake.table.reclaim(b"a", [LeaseName(position=first.position, attempt=first.attempt)], now=1001.0)
    publish(intake, step=0)
    assert intake.grant(b"b", now=1002.0) is None
    intake.table.heartbeat(b"a", [LeaseName(position=first.position, attempt=first.attempt)], [0], now=1010.0)
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
    before = stored_groups(intake, 0)
    intake.ledger.close()
    intake = open_intake(config)
    assert intake.commit_batch(0)
    after = stored_groups(intake, 0)
    assert [(e.group.position, e.advantages, e.visit) for e in after] == [
        (e.group.position, e.advantages, e.visit) for e in before
    ]


def test_the_newest_version_in_the_store_serves_leases_before_the_trainer_is_up(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    config = make_config(tmp_path, groups_per_step=1, max_lag=2)
    intake = trained_to_step(open_intake(config), 3)
    newest = publish(intake, step=3)
    intake.ledger.close()
    intake = open_intake(config)
    assert intake.grant(b"a", now=0.0) is None
    intake.offer(newest)
    # Steps 3, 4 and 5 may train on what the weights of step 3 answer, as at any other time.
    assert [lease.min_version for lease in leases_of(intake)] == [newest] * 3
    assert intake.versions.newest.weights_version == newest
    # The trainer has lost the steps since its checkpoint: no further lease asks for a state that is gone.
    intake.resume(1)
    intake.release_session(b"a")
    assert intake.grant(b"a", now=0.0) is None
    version = publish(intake, step=3)
    assert version > newest
    assert [lease.min_version for lease in leases_of(intake)] == [version] * 3


def test_a_version_that_a_trainer_had_repeated_is_not_offered_after_a_restart(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    config = make_config(tmp_path, groups_per_step=1, max_lag=2)
    intake = trained_to_step(open_intake(config), 3)
    intake.resume(1)
    repeated = publish(intake, step=1)
    intake.ledger.close()
    intake = open_intake(config)
    intake.offer(repeated)
    assert intake.grant(b"a", now=0.0) is None


def test_a_version_that_this_run_never_granted_is_not_offered(tmp_path: Path, open_intake: OpenIntake) -> None:
    intake = open_intake(make_config(tmp_path))
    for version in (None, 7):
        intake.offer(version)
        assert intake.grant(b"a", now=0.0) is None
