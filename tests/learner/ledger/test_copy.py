"""Reading a ledger beside its writer: every copy is of one commit, and nothing in the folder changes."""

import contextlib
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcpo_async.algorithm import RewardStats
from dcpo_async.errors import LedgerError
from learner.ledger.copy import copy_consistently, open_copy
from learner.ledger.ledger import Ledger

WRITER = """
import itertools, sys
from pathlib import Path
from learner.ledger.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
for number in itertools.count(1):
    for position in range(100):
        ledger.write_lease(position, f"{position} {'x' * 4000}", visit=1, attempt=number, weights_step=0)
    ledger.commit()
    if number == 1:
        print("ready", flush=True)
"""
"""Every commit writes the same number into rows on a hundred pages; the log begins anew every few commits."""


@pytest.fixture
def busy_ledger(tmp_path: Path) -> Iterator[Path]:
    """A ledger that another process has open and changes all the time."""
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    with writer, writer.stdout:
        writer.stdout.readline()
        yield tmp_path
        writer.kill()


def test_every_copy_of_a_ledger_that_changes_is_of_one_commit(busy_ledger: Path) -> None:
    numbers = []
    for _ in range(10):
        with open_copy(busy_ledger) as reader:
            visits = reader.visits()
        found = {visit.attempt for visit in visits}
        assert (len(visits), len(found)) == (100, 1)
        numbers += found
    assert numbers == sorted(numbers)
    assert numbers[0] < numbers[-1]


def test_what_is_copied_while_the_log_begins_anew_is_copied_again(tmp_path: Path) -> None:
    path, copy, copied = tmp_path / "ledger.sqlite", tmp_path / "copy.sqlite", []
    with contextlib.closing(log_writer(path)) as writer:

        def copy_file(source: Path, target: Path) -> None:
            shutil.copyfile(source, target)
            copied.append(source.name)
            if len(copied) == 1:
                # The database that was copied still says 0, the log that is copied next says nothing of it any more.
                writer.execute("UPDATE meta SET value = '1' WHERE key = 'first'")
                writer.execute("PRAGMA wal_checkpoint")
                writer.execute("UPDATE meta SET value = '2' WHERE key = 'second'")

        copy_consistently(path, copy, copy_file)
    assert copied == ["ledger.sqlite", "ledger.sqlite-wal"] * 2
    with contextlib.closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("SELECT * FROM meta").fetchall() == [("first", "1"), ("second", "2")]


def test_a_log_that_begins_anew_during_every_copy_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with contextlib.closing(log_writer(path)) as writer:

        def copy_file(source: Path, target: Path) -> None:
            writer.execute("UPDATE meta SET value = value + 1")
            writer.execute("PRAGMA wal_checkpoint")

        with pytest.raises(LedgerError, match="its log began anew during each of 20 copies; try again"):
            copy_consistently(path, tmp_path / "copy.sqlite", copy_file)


def log_writer(path: Path) -> sqlite3.Connection:
    """A database whose words are 0; its log is moved into the database only when a test says so."""
    writer = sqlite3.connect(path, isolation_level=None)
    for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "wal_autocheckpoint=0"):
        writer.execute(f"PRAGMA {pragma}")
    writer.execute("CREATE TABLE meta (key, value)")
    writer.execute("INSERT INTO meta VALUES ('first', '0'), ('second', '0')")
    writer.execute("PRAGMA wal_checkpoint")
    return writer


def test_others_read_beside_the_writer_and_none_writes(busy_ledger: Path) -> None:
    with open_copy(busy_ledger, is_checked=True):
        pass
    with contextlib.closing(sqlite3.connect(busy_ledger / "ledger.sqlite", timeout=0)) as connection:
        attempts = {attempt for (attempt,) in connection.execute("SELECT attempt FROM visits")}
        assert len(attempts) == 1
        with contextlib.closing(sqlite3.connect(busy_ledger / "backup.sqlite")) as backup:
            connection.backup(backup)
            assert backup.execute("SELECT COUNT(*), COUNT(DISTINCT attempt) FROM visits").fetchall() == [(100, 1)]
    with pytest.raises(LedgerError, match=r"another learner is running on this folder \(process \d+ on "):
        Ledger(busy_ledger)


def test_a_copy_holds_what_is_committed_and_nothing_else(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.write_lease(0, "p", visit=1, attempt=1, weights_step=0)
    ledger.commit()
    ledger.write_lease(1, "q", visit=1, attempt=1, weights_step=0)
    with open_copy(tmp_path) as reader:
        assert [visit.prompt_id for visit in reader.visits()] == ["p"]
    ledger.abandon()


def test_a_closed_ledger_is_read_and_left_as_it_is(tmp_path: Path) -> None:
    Ledger(tmp_path / "a").close()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with open_copy(tmp_path / "a") as reader:
        assert reader.meta("incarnation") == "1"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_the_ledger_of_a_learner_that_was_killed_is_read_with_its_log(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "a")
    ledger.set_meta("run_id", "run-1")
    ledger.commit()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    ledger.abandon()
    assert (tmp_path / "b" / "ledger.sqlite-wal").stat().st_size > 0
    with open_copy(tmp_path / "b") as reader:
        assert reader.meta("run_id") == "run-1"


def test_statistics_in_millionths_are_read_in_billionths(ledger_in_millionths: Path) -> None:
    before = (ledger_in_millionths / "ledger.sqlite").read_bytes()
    with open_copy(ledger_in_millionths) as reader:
        assert reader.reward_stats("p") == RewardStats().with_rewards([1, 0]).with_rewards([-0.1, 0])
        assert reader.reward_stats("q") == RewardStats().with_rewards([0, 0])
    assert (ledger_in_millionths / "ledger.sqlite").read_bytes() == before


def test_a_ledger_from_before_its_first_table_is_empty(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").touch()
    with open_copy(tmp_path) as reader:
        assert reader.next_position() == 0


def test_a_folder_without_a_ledger_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(
            LedgerError, match=r"ledger\.sqlite: no such file; name the folder of a run that has been started"
        ),
        open_copy(tmp_path),
    ):
        pass


def test_a_file_that_is_no_ledger_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_text("certainly not a database, and long enough to show it" * 100)
    with pytest.raises(LedgerError, match="file is not a database"), open_copy(tmp_path):
        pass
