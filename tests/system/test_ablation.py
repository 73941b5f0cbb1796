"""The ablation, reduced: three arms with the real engine, and one that is killed and goes on."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dcpo_async.metrics.jsonl import read_metrics

pytestmark = [pytest.mark.system, pytest.mark.thorough, pytest.mark.timeout(500)]

ROOT = Path(__file__).parents[2]


def ablation(out: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "bench.ablation", "--out", str(out), "--seeds", "0", *words]


def finished(words: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=seconds)


def cells(table: str) -> dict[str, list[str]]:
    """Cells of each row of the first table by its arm, the header's by "arm"."""
    lines = [line for line in table.partition("\n\n")[0].splitlines() if line.startswith("| ") and "---" not in line]
    rows = [line.strip("| ").split(" | ") for line in lines]
    return {name: values for name, *values in rows}


def test_dcpo_learns_from_more_responses_clips_less_and_generates_less_than_its_rivals(tmp_path: Path) -> None:
    words = ablation(tmp_path / "out", "--only", "DCPO", "GRPO", "DAPO", "--steps", "40", "--every", "20")
    done = finished(words, seconds=380)
    assert done.returncode == 0, done.stdout + done.stderr
    table = cells(done.stdout)
    assert table.keys() == {"arm", "DCPO", "GRPO", "DAPO"}
    runs = {name: read_metrics(tmp_path / "out" / f"{name.lower()}-seed0") for name in ("DCPO", "GRPO", "DAPO")}
    last = {name: metrics[-1] for name, metrics in runs.items()}
    assert last["DCPO"]["generated_responses"] == last["GRPO"]["generated_responses"] == 40 * 16 * 8
    assert last["DAPO"]["generated_responses"] > last["DCPO"]["generated_responses"]
    later = {name: [line["rur_later"] for line in metrics if "rur_later" in line] for name, metrics in runs.items()}
    assert sum(later["DCPO"]) > sum(later["GRPO"])
    assert sum(line["tcr"] for line in runs["DCPO"]) < sum(line["tcr"] for line in runs["GRPO"])
    # Without lag the engine's log-probs are the learner's own.
    assert all(line["lag_mean"] == 0 for metrics in runs.values() for line in metrics)
    assert all(line["kl_behavior"] < 1e-6 for metrics in runs.values() for line in metrics[::4])
    figures = json.loads((tmp_path / "out" / "evaluation-seed0" / "summary.json").read_text())
    accuracy = {name: model["sets"]["held_out"]["sampled"]["accuracy"]["mean"] for name, model in figures.items()}
    assert accuracy["dcpo-seed0-step0000"] == accuracy["grpo-seed0-step0000"] < 0.3
    assert accuracy["dcpo-seed0-step0040"] > accuracy["dcpo-seed0-step0020"] > accuracy["dcpo-seed0-step0000"]


def kill_after_a_batch(words: list[str], run: Path) -> None:
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 250
        while len(read_metrics(run)) < 5:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()


def test_a_killed_ablation_goes_on_and_a_finished_one_prints_its_table_again(tmp_path: Path) -> None:
    words = ablation(tmp_path / "out", "--engine", "scripted", "--only", "DCPO", "GRPO", "--at-once", "1")
    words += ["--steps", "24", "--every", "8", "--samples", "1"]
    kill_after_a_batch(words, tmp_path / "out" / "dcpo-seed0")
    done = finished(words, seconds=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert cells(done.stdout).keys() == {"arm", "DCPO", "GRPO"}
    killed, undisturbed = (read_metrics(tmp_path / "out" / f"{name}-seed0") for name in ("dcpo", "grpo"))
    assert [line["step"] for line in killed] == list(range(1, 25))
    assert killed[-1]["generated_responses"] == undisturbed[-1]["generated_responses"] == 24 * 16 * 8
    spent = [line["generated_responses"] for line in killed]
    assert spent == sorted(spent)
    began = time.monotonic()
    again = finished(words, seconds=100)
    assert cells(again.stdout) == cells(done.stdout)
    assert time.monotonic() - began < 60
    other = finished([*words, "--every", "12"], seconds=60)
    assert other.returncode != 0
    assert "choose another --out" in other.stderr
