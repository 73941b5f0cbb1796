"""G1 and G2: a start on a GPU named by its UUID; bfloat16 under every ZeRO stage, killed and resumed."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import deepspeed
import torch

from bench.gpu_check.findings import Finding, Place, at_most, holds
from bench.gpu_check.model import run_config
from bench.gpu_check.rank import NUM_STEPS, SAVED_STEP

RANK = "bench.gpu_check.rank"


def start(place: Place) -> Iterator[Finding]:
    """G1: what is installed, what DeepSpeed's look at its operators costs, and a rank on a GPU given by UUID."""
    doctor = subprocess.run(
        [sys.executable, "-m", "dcpo_async.commands.cli", "doctor"], capture_output=True, text=True, check=False
    )
    yield Finding("dcpo doctor", doctor.stdout.strip().replace("\n", "; "))
    environment = place.environment()
    if place.is_gpu:
        uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
        free, _ = torch.cuda.mem_get_info(0)
        len(deepspeed.ops.__compatible_ops__)
        yield at_most("GB on GPU 0 by the operator probe", (free - torch.cuda.mem_get_info(0)[0]) / 1e9, 0.1)
        environment["CUDA_VISIBLE_DEVICES"] = uuid
    config = written(place, zero_stage=2, name="start")
    seen = place.run(RANK, str(config), "memory", "--device", place.device, environment=environment)
    where = environment.get("CUDA_VISIBLE_DEVICES") or "the CPU"
    yield holds(f"a step on {where}", "done", "done", seen["parameters"] > 0)


def stages(place: Place) -> Iterator[Finding]:
    """G2: for each stage an undisturbed run beside one that is killed after its checkpoint and resumed."""
    for zero_stage in range(4) if place.is_gpu else (2,):
        whole = train(place, zero_stage, "whole")
        first, resumed = train(place, zero_stage, "first"), train(place, zero_stage, "resumed")
        losses = {**first["losses"], **resumed["losses"]}
        assert len(losses) == NUM_STEPS
        difference = max(abs(losses[step] - loss) for step, loss in whole["losses"].items())
        name = f"ZeRO {zero_stage}"
        yield at_most(f"{name}: losses, killed at step {SAVED_STEP} and resumed", difference, 1e-3)
        devices, expected = resumed["adam"], ["cuda:0"] if place.is_gpu else ["cpu"]
        # DeepSpeed's own wrapper for bfloat16 without ZeRO keeps no states under the parameters' names.
        yield holds(
            f"{name}: Adam's step after a resume", f"{devices}", f"{expected} or none", devices in ([], expected)
        )
        skipped, next_loss = whole["after an overflow"]
        is_right = math.isnan(skipped) and math.isfinite(next_loss)
        yield holds(f"{name}: an overflow", f"{skipped}, then {next_loss:.4g}", "skipped, then goes on", is_right)
        yield holds(f"{name}: an empty micro-batch", f"{whole['of nothing']}", "0", whole["of nothing"] == 0)
        yield holds(f"{name}: sums in float64", f"{whole['float64 sums']}", "ones", whole["float64 sums"] == [1.0] * 3)


def train(place: Place, zero_stage: int, mode: str) -> dict[str, dict[str, float]]:
    """What a rank saw; the one that is killed has printed it before."""
    name = f"zero-{zero_stage}-{'whole' if mode == 'whole' else 'killed'}"
    words = [str(written(place, zero_stage, name)), mode, "--device", place.device]
    if mode != "first":
        seen: dict[str, dict[str, float]] = place.run(RANK, *words)
        return seen
    done = subprocess.run(
        [sys.executable, "-m", RANK, *words], env=place.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == -9, done.stderr[-2000:]
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def written(place: Place, zero_stage: int, name: str) -> Path:
    """The path of a run's settings."""
    config = run_config(place, zero_stage, name)
    config.folder.mkdir(exist_ok=True)
    path = config.folder / "config.json"
    path.write_text(config.model_dump_json())
    return path
