"""The learner's side of the comparison with TRL takes its steps; TRL itself is not among what is installed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.trl.samples import write_samples
from tests.tiny_model import make_tiny_model


@pytest.mark.system
def test_a_step_is_measured(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "model", seed=3)
    vocab_size = json.loads((tmp_path / "model" / "config.json").read_text())["vocab_size"]
    write_samples(tmp_path / "samples.json", vocab_size, num_groups=1, utilization=0.7, seed=4)
    words = [str(tmp_path / "model"), str(tmp_path / "samples.json"), "training.micro_batch_tokens=1024"]
    done = subprocess.run(
        [sys.executable, "-m", "bench.trl.ours", *words], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert min(found[name] for name in ("seconds", "cpu_seconds", "peak_mib")) > 0
