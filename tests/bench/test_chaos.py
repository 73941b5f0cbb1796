"""The recount finds what is wrong with a ledger, and a short run of kills leaves nothing wrong."""

import contextlib
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from bench.chaos.recount import Recount, recount
from tests.learner.small_run import make_config, make_intake, train

REWARDS = ([(1.0, 0.0), (1.0, 1.0)], [(0.0, 0.0), (1.0, 0.0)], [(0.0, 1.0), (1.0, 1.0)], [(1.0, 1.0), (0.0, 1.0)])


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """Four steps over four prompts: each is visited twice."""
    intake = make_intake(make_config(tmp_path, groups_per_step=2, max_lag=0), num_prompts=4)
    train(intake, *REWARDS)
    intake.ledger.commit()
    intake.ledger.close()
    return tmp_path / "ledger" / "ledger.sqlite"


def recounted(ledger: Path, acks: Path | None = None) -> Recount:
    return recount(ledger, groups_per_step=2, max_lag=0, checkpoint_interval=3, acks=acks)


def test_a_sound_ledger_has_no_faults(ledger: Path, tmp_path: Path) -> None:
    (tmp_path / "12.acks").write_text("0 1\n5 1\n")
    found = recounted(ledger, tmp_path)
    assert found == Recount(groups=8, steps=4, versions=4, attempts=8, acks=2, faults=())


def test_a_trainer_may_begin_again_from_a_checkpoint(ledger: Path) -> None:
    with contextlib.closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute("UPDATE versions SET step = 0 WHERE weights_version = 3")
    assert recounted(ledger).faults == ()


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("DELETE FROM visits WHERE position = 3", "position 3 is missing"),
        ("DELETE FROM groups WHERE position = 2", "its group is not there"),
        ("UPDATE visits SET visit = 3 WHERE position = 7", "has the visits"),
        ("UPDATE visits SET state = 'too_old' WHERE position = 7", "is too_old"),
        ("UPDATE groups SET rewards = '1.0 1.0' WHERE position = 0", "statistics of prompt-"),
        ("UPDATE groups SET advantages = '0.5 -0.5' WHERE position = 5", "the equations give"),
        ("UPDATE prompt_stats SET sum_nano = sum_nano + 1 WHERE prompt_id = 'prompt-1'", "statistics of prompt-1"),
        ("UPDATE steps SET step = 9 WHERE step = 3", "with a gap"),
        ("DELETE FROM steps WHERE step = 2 AND place = 0", "other sizes"),
        ("UPDATE visits SET weights_step = 0 WHERE position = 7", "by weights of step 0"),
        ("UPDATE versions SET step = 9 WHERE weights_version = 2", "in the same start"),
        ("UPDATE versions SET incarnation = 7 WHERE weights_version = 2", "of an earlier start"),
    ],
)
def test_what_is_wrong_with_a_ledger_is_found(ledger: Path, statement: str, fault: str) -> None:
    with contextlib.closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute(statement)
    faults = recounted(ledger).faults
    assert any(fault in found for found in faults), faults


def test_a_group_that_an_actor_was_told_is_durable_and_that_is_not_there_is_found(ledger: Path, tmp_path: Path) -> None:
    (tmp_path / "12.acks").write_text("3 1\n3 2\n")
    (fault,) = recounted(ledger, tmp_path).faults
    assert "attempt 2 of position 3" in fault


@pytest.mark.system
@pytest.mark.timeout(500)
def test_some_kills_lose_nothing_and_the_run_has_the_bits_of_an_undisturbed_one(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "bench.chaos", "--cycles", "8", "--gap-seconds", "1", "--out", str(tmp_path / "out")]
    done = subprocess.run(argv, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=480)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing lost, nothing counted twice" in done.stdout
