"""The checks for GPUs: told what is missing where there is none, and run in tiny sizes on a CPU."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.gpu_check.__main__ import CHECKS, findings, rendered
from bench.gpu_check.findings import Place, SkippedError


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("check", CHECKS)
def test_without_a_gpu_each_check_says_so(tmp_path: Path, check: str) -> None:
    with pytest.raises(SkippedError, match="no GPU"):
        next(findings(check, Place("cuda", tmp_path, tmp_path)))


@pytest.mark.parametrize("check", ["G5", "G7"])
def test_a_check_finds_on_a_cpu_what_it_looks_for_on_a_gpu(tmp_path: Path, check: str) -> None:
    found = list(findings(check, Place("cpu", tmp_path, tmp_path)))
    assert len(found) >= 5
    assert all(finding.is_met is not False for finding in found)


def test_a_report_names_what_was_missed_skipped_and_failed() -> None:
    number = {"name": "peak GB", "found": "80", "bound": "70 ± 10 %", "is_met": False}
    found = [number, {"skipped": "no GPU"}, {"failed": "CUDA out of memory"}]
    text = rendered({"check": "G3", "title": "memory", "found": found})
    assert text.splitlines()[3:] == [
        "- peak GB: 80 (70 ± 10 %) ✗",
        "- skipped: no GPU",
        "- failed: CUDA out of memory",
    ]


@pytest.mark.thorough
@pytest.mark.system
@pytest.mark.timeout(900)
def test_the_dry_run_of_all_checks_meets_every_bound(tmp_path: Path) -> None:
    words = ["--device", "cpu", "--folder", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu_check", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert all(f"**{check}**" in done.stdout for check in CHECKS)
    assert "failed" not in done.stdout
