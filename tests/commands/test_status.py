"""`dcpo status`: what it prints of runs in each state, and what it exits with."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from dcpo_async.commands.cli import main
from dcpo_async.metrics.health import this_process
from dcpo_async.metrics.live_table import sparkline


def actor(session: str, speed: float | None, **changed: object) -> dict[str, Any]:
    return {
        "session": session,
        "host": "node-1",
        "engine": "vllm",
        "weights_version": 7,
        "activity": "generating",
        "tokens_per_second": speed,
        "groups_accepted": 3,
        "leases": 2,
        "oldest_lease_seconds": 51.0,
        "responses_in_flight": 4,
        "response_capacity": 8,
        "heard_seconds_ago": 1.0,
        **changed,
    }


def write_status(folder: Path, **changed: object) -> None:
    now = time.time()
    status = {
        "run_id": "run-1",
        "written_at": now,
        "started_at": now - 7200,
        "process": this_process(),
        "is_over": False,
        "is_finished": False,
        "step": 30,
        "max_steps": 90,
        "last_step_at": now - 4,
        "seconds_per_step": 3.0,
        "eta_seconds": 180.0,
        "weights_version": 8,
        "groups_counted": 60,
        "actors": 2.0,
        "actors_connected": [actor("fast", 20.0), actor("slow", 0.3)],
        "waiting_for": None,
        "advice": "Both sides are busy: neither waits for the other.",
        "last_step": {},
    }
    (folder / "status.json").write_text(json.dumps({**status, **changed}))
    (folder / "metrics.jsonl").write_text('{"step": 29, "reward": 0.25}\n{"step": 30, "reward": 0.5}\n')


def shown(capsys: pytest.CaptureFixture[str], folder: Path, *words: str) -> tuple[object, str]:
    with pytest.raises(SystemExit) as end:
        main(["status", str(folder), *words])
    return end.value.code, capsys.readouterr().out


def test_sparklines_of_shares_are_on_one_scale_and_what_stays_the_same_is_at_half_the_height() -> None:
    assert sparkline([0.0, 1.0]) == "▁█"
    assert (sparkline([0.0, 0.0], is_share=True), sparkline([1.0, 1.0], is_share=True)) == ("▁▁", "██")
    assert sparkline([4.0, 4.0, 4.0]) == "▄▄▄"


def test_a_run_that_trains_is_shown_with_its_pace_and_its_actors_slowest_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    write_status(tmp_path)
    code, text = shown(capsys, tmp_path)
    assert code == 0
    assert "● training · last step 4 s ago, one each 3 s · 3 min to go · started 2 h ago" in text
    assert "actors connected: 2; groups counted: 60; newest weights version: 8" in text
    slow, fast = (line.split() for line in text.splitlines() if "node-1" in line)
    assert slow[1:-1] == ["slow", "node-1", "generating", "7", "(−1)", "0.3", "3", "2", "51", "s", "4/8", "1", "s"]
    assert fast[1] == "fast"


def test_who_is_waited_for_is_told_and_the_exit_code_says_that_something_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    waits = {"seconds": 71.0, "position": 5, "holder": "slow", "lease_seconds": 80.0, "tokens": 3}
    write_status(tmp_path, waiting_for=waits)
    code, text = shown(capsys, tmp_path)
    assert code == 1
    assert "● degraded · the next batch has waited 1 min 11 s, for lease 5 of slow" in text
    assert "the next batch waits since 71 s: lease 5 of slow, 80 s old, 3 tokens so far" in text


def test_a_run_whose_learner_was_killed_does_not_look_alive(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    child = subprocess.Popen(["true"])
    child.wait()
    process = {**this_process(), "pid": child.pid}
    write_status(tmp_path, process=process, written_at=time.time() - 300)
    for words in ([], ["--watch"]):
        code, text = shown(capsys, tmp_path, *words)
        assert code == 3
        assert "● dead · the learner's process is gone, last sign of life 5 min ago; the same command resumes" in text
        assert "actors connected" not in text
        assert "to go" not in text
    code, text = shown(capsys, tmp_path, "--json")
    health = json.loads(text)["health"]
    assert (code, health["state"]) == (3, "dead")
    assert health["age_seconds"] >= 300


def test_a_finished_run_says_when_it_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    write_status(tmp_path, is_over=True, is_finished=True, step=90)
    code, text = shown(capsys, tmp_path)
    assert code == 0
    assert "● finished · all steps are trained · ended 20" in text
    assert "actors at the end: 2" in text


@pytest.mark.parametrize("where", ["no-such-folder", "127.0.0.1:1", "http://127.0.0.1:1"])
def test_a_place_without_a_run_is_refused(where: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["status", where])
    assert end.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
