"""The demo from nothing to a summary, with the real vLLM, on a model that is hardly warm."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from dcpo_async.metrics.jsonl import read_metrics

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "out"
    words = ["demo", "--out", str(folder), "--warm-up-steps", "10", "--training.max_steps", "3"]
    command = [sys.executable, "-m", "dcpo_async.commands.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_demo_leaves_a_summary_with_the_promised_fields(out: Path) -> None:
    summary = json.loads((out / "summary.json").read_text())
    assert summary["engine"] == "vllm"
    assert summary["steps"] == 3
    assert summary["groups_counted"] >= 3 * 16
    assert summary["weights_versions"] == 4
    assert 0 <= summary["accuracy_before"] <= 1
    assert 0 <= summary["accuracy_after"] <= 1


def test_the_demo_leaves_metrics_curves_and_a_model_that_loads(out: Path) -> None:
    assert [step["step"] for step in read_metrics(out)] == [1, 2, 3]
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((out / "run" / "tensorboard").iterdir())
    AutoModelForCausalLM.from_pretrained(json.loads((out / "summary.json").read_text())["checkpoint"])


def test_every_response_carries_the_version_that_vllm_stamped(out: Path) -> None:
    steps = read_metrics(out)
    assert all(0 <= step["lag_mean"] <= 4 for step in steps)
    assert all(step["nonfinite_tokens"] == 0 for step in steps)


def test_the_learners_log_probs_agree_with_vllms(out: Path) -> None:
    # At step 1 both sides have the same weights, so that the ratio shows nothing but their arithmetic.
    first = read_metrics(out)[0]
    assert abs(first["ratio_mean"] - 1) < 1e-4
    assert first["kl_behavior"] < 1e-8
