"""What failures and refused groups do to prompts, with a real ledger."""

from pathlib import Path

import pytest

from learner.coordinator.intake import Intake
from learner.reports.release import release_prompts
from tests.learner.small_run import OpenIntake, answer, leases_of, make_config, publish


def test_a_sick_host_whose_groups_are_refused_quarantines_nothing(tmp_path: Path, open_intake: OpenIntake) -> None:
    """24 refused groups of one actor once quarantined 8 of 8 prompts, for this start and all later ones."""
    intake = open_intake(make_config(tmp_path, groups_per_step=2, max_lag=1), num_prompts=8)
    version, now = publish(intake, step=0), 0.0
    for number in range(24):
        lease = intake.grant(b"sick", now)
        if lease is None:
            now += 30.0
            lease = intake.grant(b"sick", now)
        assert lease is not None
        ack = intake.accept(b"sick", answer(lease, version, log_prob=float("nan")), now)
        assert (ack.outcome, number) == ("invalid", number)
        assert "log-probability nan" in ack.detail
    assert intake.quarantined == {}
    assert {row.failures for row in intake.ledger.visits()} == {0}
    # Everything that it held goes to a healthy host, at once and under its old place.
    assert [lease.position for lease in leases_of(intake, b"well")] == [0, 1, 2, 3]


def test_a_group_that_was_made_by_other_settings_is_superseded_and_its_lease_goes_to_others(
    tmp_path: Path, open_intake: OpenIntake, caplog: pytest.LogCaptureFixture
) -> None:
    intake = open_intake(make_config(tmp_path))
    version = publish(intake, step=0)
    lease = leases_of(intake, at_most=1)[0]
    ack = intake.accept(b"a", answer(lease, version, made_by="another grader"))
    assert (ack.outcome, intake.ledger.num_groups) == ("superseded", 0)
    assert "other settings" in ack.detail
    assert "group 0 of a does not count" in caplog.text
    # Not at once to whoever would answer it by the same settings again.
    assert lease.position not in [other.position for other in leases_of(intake, b"a", at_most=1)]
    again = leases_of(intake, b"b", at_most=1)[0]
    assert (again.position, again.attempt) == (lease.position, 2)
    assert intake.accept(b"b", answer(again, version)).outcome == "accepted"


def test_a_lease_whose_group_cannot_be_read_goes_to_another_host(tmp_path: Path, open_intake: OpenIntake) -> None:
    intake = open_intake(make_config(tmp_path))
    publish(intake, step=0)
    lease = leases_of(intake, at_most=1)[0]
    intake.refuse_unread(b"b", lease.position, lease.attempt, 0.0)
    assert lease.position not in [other.position for other in leases_of(intake, b"b", at_most=1)]
    intake.refuse_unread(b"a", lease.position, lease.attempt, 0.0)
    assert lease.position not in [other.position for other in leases_of(intake, b"a", at_most=1)]
    assert leases_of(intake, b"b", at_most=1)[0].position == lease.position
    assert intake.counts["groups_invalid"] == 1


def test_a_prompt_that_its_holders_die_of_is_quarantined_and_those_beside_it_are_not(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    intake = open_intake(make_config(tmp_path, groups_per_step=2, max_lag=1), num_prompts=8)
    version, now, poison = publish(intake, step=0), 0.0, "prompt-3"
    for number in range(60):
        now += 100.0
        host = f"host-{number % 3}".encode()
        intake.blame.join(host, host.decode())
        leases = leases_of(intake, host, now=now)
        if any(lease.prompt_id == poison for lease in leases):
            intake.release_session(host, fell_at=now)
            intake.blame.leave(host)
            continue
        for lease in leases:
            assert intake.accept(host, answer(lease, version), now).outcome == "accepted"
        if intake.commit_batch(intake.ledger.next_batch_step()):
            version = publish(intake, intake.ledger.next_batch_step())
    assert [row.prompt_id for row in intake.quarantined.values()] == [poison]
    assert intake.ledger.next_batch_step() > 10


def test_a_prompt_that_is_released_is_leased_again_at_its_next_regular_visit(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    config = make_config(tmp_path, groups_per_step=1, max_lag=0, actor={"max_failures": 1})
    intake = open_intake(config, num_prompts=2)
    publish(intake, step=0)
    lease = leases_of(intake, at_most=1)[0]
    intake.fail(b"a", lease.position, lease.attempt, "no tokens", is_prompts_fault=True, now=0.0)
    assert len(intake.quarantined) == 1
    intake.ledger.close()
    release_prompts(tmp_path / "ledger", [lease.prompt_id])
    intake = open_intake(config, num_prompts=2)
    assert intake.quarantined == {}
    visited = [prompt_id for prompt_id, _ in trained_visits(intake, num_steps=4)]
    assert lease.prompt_id in visited


def trained_visits(intake: Intake, num_steps: int) -> list[tuple[str, int]]:
    found = []
    for _ in range(num_steps):
        version = publish(intake, intake.ledger.next_batch_step())
        for lease in leases_of(intake):
            found.append((lease.prompt_id, lease.visit))
            assert intake.accept(b"a", answer(lease, version)).outcome == "accepted"
        assert intake.commit_batch(intake.ledger.next_batch_step())
    return found
