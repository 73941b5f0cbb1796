"""The comparison on chains, reduced: two arms, few steps, killed in the middle; its mechanics, not its ranking."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.chains.run.__main__ import train
from dcpo_async.config import RunConfig
from dcpo_async.metrics.jsonl import read_metrics

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
LINE = (
    "-m bench.ablation --task chains --only DCPO GRPO --seeds 0 --rates 1e-3 --at-once 1 --warm-up-steps 60 "
    "--sizes states=6 operations=3 longest=2 prompts=24 held_out=6 --responses 1280 --every 40 --samples 2 "
    "--training.groups_per_step 4 --sampling.group_size 4"
)
TIMES = ("seconds", "cpu_seconds")


def command(out: Path) -> list[str]:
    return [sys.executable, *LINE.split(), "--out", str(out)]


def lines(folder: Path) -> list[dict[str, float]]:
    """Metrics without what a clock says."""
    return [{key: line[key] for key in line if key not in TIMES} for line in read_metrics(folder)]


def test_a_comparison_that_is_killed_goes_on_and_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(command(out), cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        # The second arm is in its midst.
        while not read_metrics(out / "grpo-seed0"):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    first = (out / "dcpo-seed0" / "metrics.jsonl").stat().st_mtime_ns
    done = subprocess.run(command(out), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "dcpo-seed0" / "metrics.jsonl").stat().st_mtime_ns == first
    for arm in ("dcpo", "grpo"):
        run = out / f"{arm}-seed0"
        config = RunConfig.model_validate_json((run / "config.json").read_bytes())
        own = config.model_copy(update={"folder": tmp_path / "undisturbed" / run.name})
        torch.set_num_threads(1)
        train(out / "start-seed0", own, responses=1280, every=40, samples=2, last_samples=32)
        assert lines(own.folder) == lines(run)
        for name in ("summary.json", "facts.json"):
            found, expected = (json.loads((path / "evaluation" / name).read_text()) for path in (own.folder, run))
            assert found == expected
    check_mechanics(out, done.stdout)


def check_mechanics(out: Path, table: str) -> None:
    dcpo, grpo = lines(out / "dcpo-seed0"), lines(out / "grpo-seed0")
    assert dcpo[-1]["step"] == grpo[-1]["step"] == 80
    assert dcpo[-1]["generated_responses"] == grpo[-1]["generated_responses"] == 1280
    # A prompt's second visit teaches more under DCPO; the first is the same for both, from the same responses.
    assert [line["reward"] for line in dcpo[:4]] == [line["reward"] for line in grpo[:4]]
    assert [line["rur"] for line in dcpo[:4]] == [line["rur"] for line in grpo[:4]]
    assert sum(line["rur"] for line in dcpo) > sum(line["rur"] for line in grpo)
    assert all(line["kl_behavior"] < 1e-6 for line in dcpo[::4])
    assert any(line["tcr"] > 0 for line in grpo)
    for line in grpo:
        clipped = sum(line[f"clipped_{side}_q{tenth}"] for side in ("high", "low") for tenth in range(10))
        assert clipped == pytest.approx(line["tcr"] * line["response_tokens"], abs=1e-3)
    assert "| GRPO | 1 |" in table
    assert "training prompts below 1/G at the start" in table
    assert "held_out" in (out / "report-algorithms.html").read_text()
    assert "DCPO (1)" in (out / "curves-algorithms.svg").read_text()
