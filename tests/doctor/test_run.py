"""Faults of a run, each as its learner would tell it: found, with what to do; and no false alarm on a healthy one."""

import json
import re
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from dcpo_async import __version__
from dcpo_async.commands.cli import main
from dcpo_async.doctor.disk import Grown, disk
from dcpo_async.doctor.run import run, training
from dcpo_async.metrics.health import this_process
from dcpo_async.transport.gate import BROKE_OFF
from tests.commands.test_status import actor, write_status

RUNNING = {"evaluation": 2, "step": 40, "answered": 3, "problems": 100, "actors": 1}
HEALTHY = {"total_groups_accepted": 1000.0, "generated_responses": 4000.0, "total_regraded": 400.0}


def found(folder: Path) -> list[str]:
    findings = list(run(folder))
    assert all(finding.remedy for finding in findings)
    return [f"{finding.severity}: {finding.what}" for finding in findings]


def of_now(changed: dict[str, Any]) -> dict[str, Any]:
    """With a last step so many seconds before the test, which may come long after it was collected."""
    ago = changed.get("last_step_at")
    return changed if ago is None else {**changed, "last_step_at": time.time() + ago}


def gone() -> dict[str, object]:
    child = subprocess.Popen(["true"])
    child.wait()
    return {**this_process(), "pid": child.pid}


def test_a_healthy_run_is_healthy(tmp_path: Path) -> None:
    write_status(tmp_path, **HEALTHY)
    assert found(tmp_path) == []


def test_a_folder_in_which_no_learner_has_been(tmp_path: Path) -> None:
    assert found(tmp_path)[0].startswith("error: ")


def test_a_learner_that_was_killed_with_what_its_trainer_said(tmp_path: Path) -> None:
    write_status(tmp_path, process=gone(), **HEALTHY)
    (tmp_path / "trainer_error.json").write_text(json.dumps({"message": "CUDA out of memory", "exit_code": 1}))
    (line,) = found(tmp_path)
    assert line.startswith("error: the learner is dead: ")
    assert line.endswith("a rank said: CUDA out of memory")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"written_at": time.time() - 100}, "error: the learner is silent: last sign of life"),
        ({"is_over": True}, "warning: the learner was stopped in order"),
        ({"release": "0.0.1"}, "warning: the learner is of release 0.0.1"),
        (
            {
                "release": __version__,
                "actors_connected": [actor("a", 1.0, release=""), actor("b", 1.0, release=__version__)],
            },
            f"warning: 1 of 2 actors are of another release than the learner, {__version__}: a (an earlier one)",
        ),
        ({"trainer_restarts": 2}, "warning: the trainer was started again 2 times"),
        ({"actors_connected": [], "actors": 0.0}, "error: no actor is connected"),
        (
            {"waiting_for": {"seconds": 90.0, "position": 5, "holder": "slow", "lease_seconds": 95.0, "tokens": 3}},
            "warning: the next batch has waited 1 min 30 s for lease 5 of slow, 1 min 35 s old, with 3 tokens",
        ),
        ({"waiting_for": {"seconds": 90.0}, "weights_version": 0}, "error: no weights are published"),
        ({"waiting_for": {"seconds": 90.0}}, "warning: the next batch has waited 1 min 30 s, and no lease is out"),
        (
            {"actors_connected": [actor("a", 1.0, heard_seconds_ago=12.0)]},
            "warning: actor a on node-1 was not heard of for 12 s and is lost after 15 s",
        ),
        ({"weights_version": 20}, "error: all 2 actors are at old weights, the nearest 13 versions behind"),
        (
            {"weights_version": 20, "actors_connected": [actor("a", 1.0, weights_version=19), actor("b", 1.0)]},
            "warning: actor b on node-1 is 13 weights versions behind (generating)",
        ),
        (
            {"groups_waiting": 8.0, "last_step_at": -200.0, "seconds_per_step": 3.0},
            "error: 8 groups wait to be trained and nothing trains them, for 3 min 2",
        ),
        (
            {"refused": [{"what": "a message: the peer speaks protocol version 6", "times": 1, "seconds_ago": 9.0}]},
            "warning: refused 1 times, the last 9 s ago: a message: the peer speaks protocol version 6",
        ),
        (
            {"evaluation": {"running": {**RUNNING, "quiet_seconds": 1200.0}, "last": None}},
            "warning: the evaluation of step 40 has got no answer for 20 min: 3 of 100 problems answered, 1 actors",
        ),
        (
            {"disk_free_bytes": 1e9, "last_step": {"checkpoint_bytes": 1.5e9, "publish_bytes": 0.5e9}},
            "error: 1.00 GB are free on the run's disk, a checkpoint and a version take 2.00 GB",
        ),
        (
            {
                "disk_lacks_bytes": 5e6,
                "disk_free_bytes": 1e9,
                "last_step": {"checkpoint_bytes": 1.5e9},
                "actors_connected": [actor("a", 1.0, heard_seconds_ago=300.0)],
                "waiting_for": {"seconds": 300.0, "position": 5, "holder": "a", "lease_seconds": 305.0, "tokens": 3},
            },
            "error: the run waits for its disk, which lacks 5 MB of room",
        ),
        ({"last_step": {"checkpoint_failures": 1.0}}, "error: 1 checkpoints could not be written"),
        ({"total_groups_invalid": 50.0}, "warning: 50 groups were refused as not sound, 1000 accepted"),
        (
            {"total_rewards_timeout": 100.0},
            "warning: rewards of 100 of 4000 responses could not be worked out (timeout 100)",
        ),
        ({"total_regrade_disagreements": 3.0}, "warning: 3 of 400 responses got another reward"),
        (
            {"prompts_quarantined": 1.0, "quarantined": [{"prompt_id": "3f2a", "reason": "failed 3 times"}]},
            "warning: 1 prompts are quarantined; 3f2a failed 3 times",
        ),
        ({"canary_refusals": 2.0}, "warning: engines were found 2 times not to hold the weights"),
    ],
)
def test_each_fault_is_found(tmp_path: Path, changed: dict[str, object], expected: str) -> None:
    write_status(tmp_path, **of_now({**HEALTHY, **changed}))
    lines = found(tmp_path)
    assert lines[0].startswith(expected)
    assert len(lines) <= 2, lines


def test_an_engine_that_disagrees_is_named_by_the_bound_of_the_run(tmp_path: Path) -> None:
    write_status(tmp_path, actors_connected=[actor("a", 1.0, canary_difference=0.02)])
    assert found(tmp_path) == []
    write_status(tmp_path, actors_connected=[actor("a", 1.0, canary_difference=0.02)], canary_bound=0.05)
    assert found(tmp_path) == []
    write_status(tmp_path, actors_connected=[actor("a", 1.0, canary_difference=0.02)], canary_bound=0.03)
    assert "by 0.02 nats" in found(tmp_path)[0]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"rur": 0.04}, "96% of the responses of the newest 20 steps have no advantage"),
        ({"step_skipped": 1.0}, "20 of the newest 20 steps were skipped"),
        ({"rur": 0.0, "reward": 0.0}, "no response of the newest 20 steps has an advantage, the mean reward is 0"),
        ({"truncated": 0.8}, "80% of the responses of the newest 20 steps were cut"),
    ],
)
def test_what_steps_show_is_told_once_there_are_enough(changed: dict[str, float], expected: str) -> None:
    step = {"reward": 0.5, "rur": 0.8, "truncated": 0.1, "step_skipped": 0.0}
    assert not list(training([step] * 20))
    assert not list(training([step | changed] * 19))
    (finding,) = training([step | changed] * 20)
    assert finding.what.startswith(expected)


@pytest.mark.parametrize(
    "changed",
    [
        {"groups_waiting": 8.0, "last_step_at": -5.0},
        {"groups_waiting": 8.0, "last_step_at": -200.0, "seconds_per_step": 60.0},
        {"evaluation": {"running": {**RUNNING, "quiet_seconds": 300.0}, "last": None}},
        {"refused": [{"what": "a message: the peer speaks version 6", "times": 9, "seconds_ago": 900.0}]},
        {"refused": [{"what": f"a handshake: {BROKE_OFF}", "times": 2, "seconds_ago": 2.0}]},
    ],
)
def test_what_is_like_a_fault_and_is_none(tmp_path: Path, changed: dict[str, object]) -> None:
    write_status(tmp_path, **of_now({**HEALTHY, **changed}))
    assert found(tmp_path) == []


def test_a_disk_that_will_be_full_before_the_last_step() -> None:
    status = {"step": 100, "max_steps": 1000, "disk_free_bytes": 2e9, "seconds_per_step": 60.0}
    last = {"last_step": {"checkpoint_bytes": 1e9, "publish_bytes": 0.5e9}}
    (finding,) = disk({**status, **last}, {}, Grown(rows=100_000_000, arrays=10**12))
    assert finding.what == (
        "the run's disk is full 500 steps from now, in 8 h 20 min: each keeps 1 MB, 900 steps are left"
    )
    assert not list(disk({**status, **last, "max_steps": 600}, {}, Grown(100_000_000, 10**12)))
    assert not list(disk({**status, **last, "step": 10}, {}, Grown(100_000_000, 0))), "too early to say"
    keeps_all = {"checkpoint": {"keep_every_steps": 100}}
    (finding,) = disk({**status, **last, "max_steps": 200}, keeps_all, Grown(0, 10**9))
    assert "full 25 steps from now, in 25 min: each keeps 20 MB, 100 steps are left" in finding.what
    (finding,) = disk({**status, **last, "max_steps": None}, {}, Grown(100_000_000, 0))
    assert finding.what.endswith("full 500 steps from now, in 8 h 20 min: each keeps 1 MB")
    assert not list(disk({**status, **last, "max_steps": None, "seconds_per_step": 600.0}, {}, Grown(10**8, 0)))


def test_a_learner_whose_clock_is_off_is_not_taken_for_a_silent_one(tmp_path: Path) -> None:
    def write_on() -> None:
        for _ in range(100):
            write_status(beside, process=None, written_at=time.time() + ahead, **HEALTHY)
            (beside / "status.json").replace(tmp_path / "status.json")
            if over.wait(0.1):
                return

    (beside := tmp_path / "beside").mkdir()
    for ahead in (-300.0, 40.0):
        over = threading.Event()
        writer = threading.Thread(target=write_on)
        writer.start()
        try:
            while not (tmp_path / "status.json").exists():
                time.sleep(0.01)
            (line,) = found(tmp_path)
        finally:
            over.set()
            writer.join()
        told = re.fullmatch(r"warning: the learner's clock is ([+-]\d+) s from this machine's", line)
        # On a busy machine a status is some seconds old when it is read.
        assert told
        assert 0 <= ahead - int(told[1]) < 10
        (tmp_path / "status.json").unlink()


def test_the_command_tells_what_to_do_and_exits_by_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_status(tmp_path, **HEALTHY)
    for words, code, said in (([], 0, "nothing is wrong"), (["--json"], 0, "[]")):
        with pytest.raises(SystemExit) as end:
            main(["doctor", "--run", str(tmp_path), *words])
        assert end.value.code == code
        assert said in capsys.readouterr().out
    write_status(tmp_path, actors_connected=[], actors=0.0)
    with pytest.raises(SystemExit) as end:
        main(["doctor", "--run", str(tmp_path)])
    assert end.value.code == 1
    assert "error: no actor is connected\n  → start `dcpo-actor --learner ADDRESS`" in capsys.readouterr().out


def test_settings_that_were_set_meanwhile_are_those_in_force_and_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"network": {"silence_seconds": 15.0}}))
    late = [actor("fast", 20.0, heard_seconds_ago=12.0)]
    write_status(tmp_path, actors=1.0, actors_connected=late, **HEALTHY)
    assert any("12 s" in line for line in found(tmp_path))
    change = {"name": "network.silence_seconds", "value": 60.0, "from_step": 8}
    write_status(tmp_path, actors=1.0, actors_connected=late, settings_set=[change], **HEALTHY)
    assert found(tmp_path) == []
    with pytest.raises(SystemExit):
        main(["doctor", "--run", str(tmp_path)])
    assert "set while it went on: network.silence_seconds 60.0 from step 8 on" in capsys.readouterr().out
