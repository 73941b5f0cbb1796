"""Evaluations in the ledger: each problem's answer once, in a table that training never reads."""

import contextlib
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from dcpo_async.errors import LedgerError
from learner.ledger.copy import open_copy
from learner.ledger.ledger import Ledger, write_evaluation, write_evaluation_result
from learner.ledger.reader import EvaluationRow, evaluation_results, evaluations
from learner.ledger.rows import Rows

ROW = EvaluationRow(1, weights_version=4, step=20, num_problems=2, settings="{}", state="running")
ANSWER = {"rewards": [1.0, 0.1 + 0.2], "reasons": ["equal", "no_answer"], "seconds": 0.5}


def as_format_3(folder: Path) -> None:
    """Make a closed ledger what the release before evaluations would have left."""
    path = folder / "ledger.sqlite"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        rows = Rows(connection, path)
        rows.query("BEGIN")
        rows.read_totals()
        for table in ("evaluation_results", "evaluations"):
            rows.query(f"DROP TABLE {table}")
        rows.count_schema()
        rows.query("PRAGMA user_version = 3")
        rows.write_totals()
        rows.query("COMMIT")


def test_answers_come_back_as_they_were_and_the_end_takes_the_place_of_the_beginning(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    write_evaluation(ledger, ROW)
    write_evaluation_result(ledger, 1, 1, ANSWER)
    ledger.close()
    ledger = Ledger(tmp_path)
    assert evaluations(ledger) == [ROW]
    assert evaluation_results(ledger, 1) == {1: ANSWER}
    assert evaluation_results(ledger, 2) == {}
    ended = replace(ROW, state="incomplete", reason="nobody could stay")
    write_evaluation(ledger, ended)
    ledger.close()
    with open_copy(tmp_path, is_checked=True) as reader:
        assert evaluations(reader) == [ended]
        assert reader.next_position() == reader.next_batch_step() == 0


def test_what_was_not_committed_is_not_there_and_a_second_answer_is_refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    write_evaluation(ledger, ROW)
    write_evaluation_result(ledger, 1, 0, ANSWER)
    ledger.commit()
    write_evaluation_result(ledger, 1, 1, ANSWER)
    ledger.abandon()
    ledger = Ledger(tmp_path)
    assert evaluation_results(ledger, 1) == {0: ANSWER}
    with pytest.raises(LedgerError, match="UNIQUE"):
        write_evaluation_result(ledger, 1, 0, ANSWER)
    ledger.abandon()


def test_a_ledger_of_format_3_goes_on_with_what_it_has(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.set_meta("run_id", "run-1")
    assert ledger.grant_version(7) == 1
    ledger.close()
    as_format_3(tmp_path)
    with open_copy(tmp_path, is_checked=True) as reader:
        assert evaluations(reader) == []
    ledger = Ledger(tmp_path)
    assert (ledger.meta("run_id"), ledger.version_steps(), ledger.incarnation) == ("run-1", {1: 7}, 2)
    write_evaluation(ledger, ROW)
    ledger.close()
    with open_copy(tmp_path, is_checked=True) as reader:
        assert evaluations(reader) == [ROW]


def test_a_damaged_ledger_of_format_3_is_refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.grant_version(7)
    ledger.close()
    as_format_3(tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as connection:
        connection.execute("DELETE FROM versions")
        connection.commit()
    with pytest.raises(LedgerError, match="table versions: its 0 rows are not the 1 that were written"):
        Ledger(tmp_path)
