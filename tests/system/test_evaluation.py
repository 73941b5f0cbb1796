"""`dcpo eval` as a process: killed in the middle, and beside a run whose weights move on."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actor.evaluation.__main__ import main
from actor.weights.cache import default_cache_folder
from dcpo_async.comparison.runs import read_run
from dcpo_async.metrics.jsonl import read_metrics
from dcpo_async.weights.places import versions
from dcpo_async.weights.store import verify
from tests.system.conftest import STEADY
from tests.system.services import Services, assert_counted_once, two_free_ports, write_problems

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

SHORT = ("--max-prompt-tokens", "32", "--max-response-tokens", "16", "--system-prompt=", "--engine", "scripted")


def results(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Every line of every model, by model."""
    return {
        path.parent.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(folder.glob("*/*.jsonl"))
    }


@pytest.fixture
def services(tmp_path: Path, model: Path) -> Iterator[Services]:
    with Services(tmp_path, model) as services:
        yield services


def test_a_killed_evaluation_goes_on_to_the_result_of_an_undisturbed_one(services: Services, model: Path) -> None:
    words = (str(model), "--data", str(services.folder / "data.jsonl"), "--samples", "4", "--in-flight", "8", *SHORT)
    outs = [services.folder / "killed", services.folder / "undisturbed"]
    killed = services.start(
        "dcpo_async.commands.cli", "eval", *words, "--out", str(outs[0]), "--tokens-per-second", "40"
    )
    log = outs[0] / model.name / "data.jsonl"
    services.until("some results", lambda: log.exists() and log.read_bytes().count(b"\n") >= 3)
    killed.signal(signal.SIGKILL)
    killed.process.wait()
    assert log.read_bytes().count(b"\n") < 40
    for out in outs:
        main([*words, "--out", str(out)])
    found, expected = ({line["id"]: line["responses"] for line in results(out)[model.name]} for out in outs)
    assert len(found) == 40
    assert found == expected
    figures = [json.loads((out / "summary.json").read_text())[model.name]["sets"] for out in outs]
    assert figures[0] == figures[1]


def test_an_evaluator_beside_a_run_measures_whole_versions_and_changes_nothing(
    services: Services, steady_run: Services
) -> None:
    out, held_out = services.folder / "evaluation", services.folder / "held_out.jsonl"
    write_problems(held_out, 60)
    learner, actor = services.start_learner(*STEADY), services.start_actor("--tokens-per-second", "40")
    evaluator = services.start(
        *("dcpo_async.commands.cli", "eval", "--learner", services.address, "--data", str(held_out), "--samples", "2"),
        *("--in-flight", "60", "--tokens-per-second", "40", "--keep-best", "--out", str(out), *SHORT),
    )
    services.until("both at work", lambda: services.status().get("evaluators_connected"))
    assert len(services.status()["actors_connected"]) <= 1
    for service in (learner, actor, evaluator):
        services.ends_well(service)

    # Every version was measured as a whole, while later ones were published.
    measured = results(out)
    assert len(measured) >= 2
    for name, lines in measured.items():
        (stamp,) = {(line["weights_version"], line["step"]) for line in lines}
        assert name == f"step-{stamp[1]:08d}-v{stamp[0]}"
        assert len(lines) == 60
    summary = json.loads((out / "summary.json").read_text())
    assert {entry["run"] for entry in summary.values()} == {services.status()["run_id"]}
    lines_of = read_metrics(out)
    best = max(lines_of, key=lambda line: line["held_out/avg@2"])
    assert verify(out / "best").weights_version == best["weights_version"]
    assert {"held_out/avg@2, low", "held_out/pass@2", "held_out/truncated, sampled"} <= best.keys()
    steps = [line["step"] for line in lines_of]
    assert steps == sorted({lines[0]["step"] for lines in measured.values()})
    assert steps[0] < steps[-1]

    # The run is the one that it would have been without an evaluator, bit for bit.
    assert [line["step"] for line in services.metrics()] == [*range(1, 13)]
    assert all(line["actors"] <= 1 for line in services.metrics())
    assert services.exported_weights() == steady_run.exported_weights()
    assert_counted_once(services)
    assert versions(default_cache_folder(services.status()["run_id"])) == []


def test_an_evaluator_that_finds_no_learner_says_so(tmp_path: Path) -> None:
    write_problems(tmp_path / "sums.jsonl", 1)
    address = f"tcp://127.0.0.1:{two_free_ports()}"
    words = ["--learner", address, "--join-seconds", "1", "--data", "sums.jsonl", "--engine", "scripted"]
    command = [sys.executable, "-m", "actor.evaluation", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"dcpo eval: no answer from the learner at {address} within 1 s")


def test_a_run_that_measures_itself_and_is_killed_meanwhile_counts_each_problem_once_and_trains_the_same(
    services: Services, steady_run: Services
) -> None:
    held_out, num_problems, samples = services.folder / "held_out.jsonl", 24, 2
    lines = [json.dumps({"problem": f"What is {i} squared?", "answer": str(i * i)}) for i in range(num_problems)]
    held_out.write_text("\n".join(lines) + "\n")
    evaluation = {"every_steps": 6, "data": f'["{held_out}"]', "samples": samples, "hold_seconds": 200}
    words = [*STEADY, *(word for name, value in evaluation.items() for word in (f"--evaluation.{name}", str(value)))]
    answered = "SELECT COUNT(*) FROM evaluation_results WHERE evaluation = 2"
    learner, actor = services.start_learner(*words), services.start_actor("--tokens-per-second", "40")
    services.until_step(6)
    services.until("some answers at step 6 or soon after", lambda: services.ledger(answered)[0][0] >= 3)
    learner.signal(signal.SIGKILL)
    learner.process.wait()
    assert services.ledger(answered)[0][0] < num_problems
    learner = services.start_learner(*words)
    for service in (learner, actor):
        services.ends_well(service)

    rows = services.ledger("SELECT evaluation, step, weights_version, state FROM evaluations")
    # The first version on or after each multiple that finds no other one still being measured and copied.
    assert [(step // 6, state) for _, step, _, state in rows] == [(number, "complete") for number in range(3)]
    found = services.ledger("SELECT evaluation, problem, result FROM evaluation_results")
    assert sorted((number, problem) for number, problem, _ in found) == [
        (number, problem) for number, *_ in rows for problem in range(num_problems)
    ]
    # Nothing of it is among what trains, and the run is the one that it would have been.
    assert services.exported_weights() == steady_run.exported_weights()
    assert_counted_once(services)
    assert services.ledger("SELECT COUNT(*) FROM groups") == steady_run.ledger("SELECT COUNT(*) FROM groups")
    # It is found where evaluations are looked for.
    run = read_run("run", services.run)
    assert [(point.step, point.samples, point.problems) for point in run.held_out] == [
        (step, samples, num_problems) for _, step, *_ in rows
    ]
    lines_of = read_metrics(services.run / "evaluation")
    best = max(lines_of, key=lambda line: line["held_out/avg@2"])
    assert verify(services.run / "evaluation" / "best").weights_version == best["weights_version"]
    assert services.status()["evaluation"]["last"]["step"] == 12
