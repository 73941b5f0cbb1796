"""Every start of a run keeps its settings, and says what differs from the start before."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from learner.ledger.ledger import Ledger
from learner.reports.show import main
from learner.starts import write_start

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)
SETTINGS: dict[str, Any] = {"seed": 1, "lag": {"max_lag": 4}, "actor": {"old": True}}
LATER: dict[str, Any] = {"seed": 1, "lag": {"max_lag": 8}, "actor": {"new": "a\nb"}}


def start(folder: Path, settings: dict[str, Any], release: str = "0.1.0") -> str:
    ledger = Ledger(folder)
    line = write_start(ledger, settings, release, NOON)
    ledger.close()
    return line


def test_a_start_says_what_differs_from_the_one_before(tmp_path: Path) -> None:
    assert start(tmp_path, SETTINGS) == "start 1 of the run; its settings are the first that the ledger keeps"
    assert start(tmp_path, SETTINGS) == "start 2 of the run; since start 1: nothing changed"
    assert start(tmp_path, LATER, "0.2.0") == (
        'start 3 of the run; since start 2: release "0.1.0" → "0.2.0"; lag.max_lag 4 → 8; '
        r'actor.old true → (no such setting); actor.new (no such setting) → "a\nb"'
    )


def test_of_several_tables_of_one_name_each_setting_is_told_by_itself(tmp_path: Path) -> None:
    sources = [{"source": "a", "reward_digest": "1"}, {"source": "b", "reward_digest": "2"}]
    start(tmp_path, {"data": {"sources": sources}})
    line = start(tmp_path, {"data": {"sources": [sources[0], {**sources[1], "reward_digest": "3"}]}})
    assert line == 'start 2 of the run; since start 1: data.sources.1.reward_digest "2" → "3"'


def test_a_start_that_was_never_written_down_is_passed_over(tmp_path: Path) -> None:
    start(tmp_path, SETTINGS)
    Ledger(tmp_path).close()
    assert start(tmp_path, SETTINGS) == "start 3 of the run; since start 1: nothing changed"


def test_starts_are_read_back_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start(tmp_path / "ledger", SETTINGS)
    start(tmp_path / "ledger", LATER)
    main([str(tmp_path), "--starts"])
    first, second = capsys.readouterr().out.splitlines()
    assert first == "start 1, 2026-11-29T12:00:00+00:00, 0.1.0: the settings that were kept first"
    assert second.startswith("start 2, 2026-11-29T12:00:00+00:00, 0.1.0: lag.max_lag 4 → 8; actor.old true → ")
    main([str(tmp_path), "--starts", "--json"])
    assert '"settings": {"seed": 1, "lag": {"max_lag": 8}, "actor": {"new": "a\\nb"}}' in capsys.readouterr().out
