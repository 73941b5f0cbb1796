"""How a run is: what each state follows from, and that no run that is over or dead looks alive."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dcpo_async.metrics.health import duration, health_of, is_running, start_of, this_process

NOW = 1_000_000.0
ALIVE: dict[str, Any] = {
    "written_at": NOW - 1,
    "started_at": NOW - 5000,
    "last_step_at": NOW - 4,
    "seconds_per_step": 3.0,
    "is_finished": False,
    "is_over": False,
    "actors": 2.0,
    "waiting_for": None,
}


@pytest.mark.parametrize(
    ("changed", "running", "state", "why", "code"),
    [
        ({}, True, "training", "", 0),
        ({}, None, "training", "", 0),
        ({"is_over": True, "is_finished": True}, False, "finished", "all steps", 0),
        ({"is_over": True}, False, "stopped", "the same command", 3),
        ({}, False, "dead", "last sign of life 1 s ago", 3),
        ({"written_at": NOW - 500}, False, "dead", "last sign of life 8 min 20 s ago", 3),
        ({"written_at": NOW - 500}, True, "silent", "is there and hangs", 3),
        ({"written_at": NOW - 500}, None, "silent", "ran on another machine", 3),
        ({"actors": 0.0}, True, "waiting", "no actor is connected", 1),
        ({"last_step_at": None, "started_at": NOW - 60}, True, "waiting", "no step since", 1),
        ({"last_step_at": NOW - 700}, True, "degraded", "no step for 11 min 40 s, usually 3 s", 1),
        ({"last_step_at": NOW - 700, "seconds_per_step": 100.0}, True, "training", "", 0),
        ({"last_step_at": NOW - 700, "evaluation": {"running": {"step": 4}}}, True, "training", "", 0),
        (
            {"waiting_for": {"seconds": 71.0, "position": 5, "holder": "vm-4"}},
            True,
            "degraded",
            "waited 1 min 11 s, for lease 5 of vm-4",
            1,
        ),
        ({"disk_lacks_bytes": 3e6}, True, "degraded", "the run waits for its disk, which lacks 3 MB", 1),
        ({"disk_free_bytes": 1e9, "last_step": {"checkpoint_bytes": 2e9}}, True, "degraded", "1.0 GB are free", 1),
    ],
)
def test_each_state_follows_from_the_status(
    changed: dict[str, Any], running: bool | None, state: str, why: str, code: int
) -> None:
    found = health_of({**ALIVE, **changed}, NOW, running)
    assert (found.state, found.exit_code) == (state, code)
    assert why in found.why
    assert found.is_live == (code < 3 and state != "finished")


def test_a_status_of_an_earlier_release_is_never_alive() -> None:
    assert health_of({"step": 3}, NOW, None).state == "silent"
    assert health_of({"step": 3, "is_finished": True}, NOW, None).state == "finished"


def test_a_process_is_known_by_its_start_so_that_another_of_its_number_is_not_taken_for_it() -> None:
    assert is_running({"process": this_process()}) is True
    assert is_running({"process": {**this_process(), "started": "1"}}) is False
    assert is_running({"process": {**this_process(), "host": "elsewhere"}}) is None
    assert is_running({}) is None


def test_a_process_that_has_ended_is_gone_also_before_its_parent_has_taken_notice() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert start_of(child.pid) is None
    child.wait()
    assert start_of(child.pid) is None
    assert start_of(1, Path("/no-such-proc")) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min"), (61, "1 min 1 s"), (7500, "2 h 5 min"), (3600, "1 h"), (93600, "1 d 2 h")],
)
def test_a_duration_is_told_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
