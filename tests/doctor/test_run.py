"""Faults of a run, each as its learner would tell it: found, with what to do; and no false alarm on a healthy one."""

import json
import subprocess
import time
from pathlib import Path

import pytest

from dcpo_async.commands.cli import main
from dcpo_async.doctor.run import run, training
from dcpo_async.metrics.health import this_process
from tests.commands.test_status import actor, write_status

HEALTHY = {"total_groups_accepted": 1000.0, "generated_responses": 4000.0, "total_regraded": 400.0}


def found(folder: Path) -> list[str]:
    findings = list(run(folder))
    assert all(finding.remedy for finding in findings)
    return [f"{finding.severity}: {finding.what}" for finding in findings]


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
        ({"weights_version": 20}, "warning: actor fast on node-1 is 13 weights versions behind (generating)"),
        (
            {"disk_free_bytes": 1e9, "last_step": {"checkpoint_bytes": 1.5e9, "publish_bytes": 0.5e9}},
            "error: 1.00 GB are free on the run's disk, a checkpoint and a version take 2.00 GB",
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
    write_status(tmp_path, **{**HEALTHY, **changed})
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
