"""Backups of a run that goes on are whole, and what they restore to goes on as the run would have."""

import itertools
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.chaos.recount import recount
from dcpo_async.errors import ConfigError, LedgerError
from learner.checkpoints.folder import complete_steps
from learner.ledger.checking import check
from learner.ledger.copy import open_copy, take_copy
from learner.ledger.rows import Rows
from learner.life.backup import back_up, main, new_folder, verified
from learner.life.events import events
from learner.life.restore import main as restore_main
from learner.life.restore import restore
from tests.learner.life.made_run import begin, go_on, take_checkpoint
from tests.learner.small_run import stored_groups


@pytest.fixture
def busy_run(tmp_path: Path) -> Iterator[Path]:
    """The folder of a run that another process trains all the time."""
    words = [sys.executable, "-m", "tests.learner.life.made_run", str(tmp_path / "run")]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as learner:
        assert learner.stdout is not None
        learner.stdout.readline()
        yield tmp_path / "run"
        learner.kill()


@pytest.fixture
def stopped_run(tmp_path: Path) -> Path:
    """A run of five steps, with a checkpoint of the third, and the lease of a sixth."""
    intake = begin(tmp_path / "run")
    go_on(intake, 3)
    take_checkpoint(intake)
    go_on(intake, 2)
    intake.grant(b"a", now=0.0)
    intake.ledger.close()
    return tmp_path / "run"


def faults(run: Path) -> tuple[str, ...]:
    """What a recount by a reader of its own has against a run's ledger."""
    ledger = run / "ledger" / "ledger.sqlite"
    return recount(ledger, groups_per_step=2, max_lag=0, checkpoint_interval=1).faults


def test_backups_under_load_restore_to_ledgers_that_pass_the_recount(busy_run: Path, tmp_path: Path) -> None:
    steps = []
    for number in range(3):
        backup, _ = back_up(busy_run, tmp_path / f"backup-{number}")
        assert 0 < backup.step <= backup.next_step
        restored = tmp_path / f"restored-{number}"
        restore(tmp_path / f"backup-{number}", restored)
        assert faults(restored) == ()
        steps.append(backup.step)
        intake = begin(restored)
        # What a trainer that begins at the checkpoint asks for is there, array by array.
        for step in range(backup.step, backup.next_step):
            assert len(stored_groups(intake, step)) == 2
        go_on(intake, 2)
        intake.ledger.close()
        assert faults(restored) == ()
    assert steps == sorted(set(steps))


def test_how_long_rows_take_to_check_does_not_hold_up_a_backup(
    busy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def newest() -> int:
        return max(complete_steps(busy_run / "checkpoints"))

    def check_slowly(rows: Rows, acknowledged: int | None) -> None:
        # In which the run takes checkpoints, and removes what they supersede.
        before = newest()
        while newest() < before + 3:
            time.sleep(0.05)
        check(rows, acknowledged)

    monkeypatch.setattr("learner.ledger.copy.check", check_slowly)
    backup, _ = back_up(busy_run, tmp_path / "backup")
    assert newest() > backup.step + 2


def test_arrays_that_were_given_up_while_the_ledger_was_copied_are_no_damage(
    stopped_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, tries = tmp_path / "kept", []

    def take(folder: Path, to: Path) -> int | None:
        segment = stopped_run / "ledger" / "segments" / "000001.segment"
        if not tries:
            segment.rename(kept)
        elif kept.exists():
            # Not needed at the second try, in a run: here it is there again.
            kept.rename(segment)
        tries.append(to)
        return take_copy(folder, to)

    monkeypatch.setattr("learner.life.backup.take_copy", take)
    back_up(stopped_run, tmp_path / "backup")
    assert len(tries) == 2


def test_more_files_than_may_be_open_are_refused_with_what_to_do(
    stopped_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2, 60):
        (stopped_run / "ledger" / "segments" / f"{number:06d}.segment").touch()
    monkeypatch.setattr("learner.life.backup.raise_descriptor_limit", lambda: 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
    free = (number for number in itertools.count() if number not in used)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next(itertools.islice(free, 30, None)), hard))
    try:
        with pytest.raises(ConfigError, match=r"files are held open, and this process may open no more.*ulimit -n"):
            back_up(stopped_run, tmp_path / "backup")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not list(tmp_path.glob("*backup*"))


def test_a_restored_run_has_all_but_the_name_of_the_run(stopped_run: Path, tmp_path: Path) -> None:
    back_up(stopped_run, tmp_path / "backup")
    backup, run_id = restore(tmp_path / "backup", tmp_path / "again")
    assert (backup.run_id, backup.step, backup.next_step, backup.groups) == ("run-1234", 3, 5, 10)
    assert run_id.startswith("again-")
    with (
        open_copy(stopped_run / "ledger") as before,
        open_copy(tmp_path / "again" / "ledger", is_checked=True) as after,
    ):
        assert after.visits() == before.visits()
        assert after.meta("run_id") == run_id
        (event,) = events(after)
    assert (event.kind, event.step, event.content["run_id"]) == ("restored", 3, "run-1234")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["folder"] == str(tmp_path / "again")
    assert (tmp_path / "again" / "metrics.jsonl").read_text() == (stopped_run / "metrics.jsonl").read_text()


def test_a_run_before_its_first_checkpoint_is_backed_up_with_all_its_arrays(tmp_path: Path) -> None:
    intake = begin(tmp_path / "run")
    go_on(intake, 2)
    intake.ledger.close()
    backup, records = back_up(tmp_path / "run", tmp_path / "backup")
    assert (backup.step, records) == (0, 4)


@pytest.mark.parametrize("name", ["ledger/ledger.sqlite", "checkpoints/step-00000003/optim_states.pt", "config.json"])
def test_a_backup_with_a_byte_changed_is_not_restored(stopped_run: Path, tmp_path: Path, name: str) -> None:
    back_up(stopped_run, tmp_path / "backup")
    path = tmp_path / "backup" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=f"{name} changed since the backup was made"):
        restore(tmp_path / "backup", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_backup_that_lost_a_file_is_not_restored(stopped_run: Path, tmp_path: Path) -> None:
    back_up(stopped_run, tmp_path / "backup")
    (tmp_path / "backup" / "ledger" / "segments" / "000001.segment").unlink()
    with pytest.raises(ConfigError, match="segment missing from the backup"):
        verified(tmp_path / "backup")


def test_a_damaged_run_is_not_backed_up(stopped_run: Path, tmp_path: Path) -> None:
    segment = stopped_run / "ledger" / "segments" / "000001.segment"
    segment.write_bytes(segment.read_bytes()[:-1] + b"\xff")
    with pytest.raises(LedgerError, match="do not match their digest"):
        back_up(stopped_run, tmp_path / "backup")
    assert not list(tmp_path.glob("*backup*"))


def test_a_run_that_lost_arrays_is_not_backed_up(stopped_run: Path, tmp_path: Path) -> None:
    (stopped_run / "ledger" / "segments" / "000001.segment").unlink()
    with pytest.raises(LedgerError, match=r"000001\.segment missing, with arrays that may still train"):
        back_up(stopped_run, tmp_path / "backup")
    assert not list(tmp_path.glob("*backup*"))


def test_commands_say_what_is_there_and_what_to_do(
    stopped_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(stopped_run), "--to", str(tmp_path / "backup")])
    assert "run run-1234, 10 groups, steps 0 to 4 and the checkpoint of step 3" in capsys.readouterr().out
    restore_main([str(tmp_path / "backup"), "--check"])
    assert "10 records of arrays are as they were written" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main([str(stopped_run), "--to", str(tmp_path / "backup")])
    assert end.value.code == 2
    with pytest.raises(SystemExit) as end:
        restore_main([str(stopped_run), "--to", str(tmp_path / "again")])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "is not replaced" in said
    assert "no backup, since backup.json is missing" in said
    restore_main([str(tmp_path / "backup"), "--to", str(tmp_path / "again")])
    assert f"dcpo-learner CONFIG --folder {tmp_path}/again" in capsys.readouterr().out


def test_a_second_command_that_writes_to_one_name_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    with new_folder(tmp_path / "backup") as writing:
        (writing / "kept").write_text("of the first")
        with pytest.raises(ConfigError, match="is being written by another command"), new_folder(tmp_path / "backup"):
            raise AssertionError("the second writes")
        assert (writing / "kept").read_text() == "of the first"
    assert (tmp_path / "backup" / "kept").read_text() == "of the first"
    assert [path.name for path in tmp_path.iterdir()] == ["backup"]


def test_what_a_command_that_died_has_begun_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".writing-backup" / "ledger").mkdir(parents=True)
    with new_folder(tmp_path / "backup") as writing:
        assert list(writing.iterdir()) == []
