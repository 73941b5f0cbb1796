"""Ledgers that are closed when a test ends, and one of an earlier release."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcpo_async.config import RunConfig
from learner.coordinator.intake import Intake
from tests.learner.small_run import OpenIntake, make_intake


@pytest.fixture
def open_intake() -> Iterator[OpenIntake]:
    opened: list[Intake] = []

    def open_one(config: RunConfig, num_prompts: int = 16) -> Intake:
        opened.append(make_intake(config, num_prompts))
        return opened[-1]

    yield open_one
    for intake in opened:
        intake.ledger.abandon()


@pytest.fixture
def ledger_in_millionths(tmp_path: Path) -> Path:
    """The folder of a ledger that counts rewards in millionths: p had (1, 0) and (−0.1, 0), q had (0, 0)."""
    folder = tmp_path / "in_millionths"
    folder.mkdir()
    with contextlib.closing(sqlite3.connect(folder / "ledger.sqlite")) as connection:
        connection.executescript(
            """
            CREATE TABLE prompt_stats (
                prompt_id TEXT PRIMARY KEY, visits INTEGER NOT NULL, count INTEGER NOT NULL,
                sum_micro INTEGER NOT NULL, sum_sq_micro TEXT NOT NULL
            ) WITHOUT ROWID;
            INSERT INTO prompt_stats VALUES ('p', 2, 4, 900000, '1010000000000'), ('q', 1, 2, 0, '0');
            """
        )
    return folder
