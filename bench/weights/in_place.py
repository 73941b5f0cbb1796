"""Elements exchanged in a standing engine beside whole loads: `python -m bench.weights.in_place MODEL`.

A real vLLM on a CPU that multiplies with weights as they stand, as on GPUs, in place of packed copies: what is measured
is the work, not a GPU's time. Seconds, medians over the versions; even versions come with a patch, odd ones without.
"""

import argparse
import asyncio
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from vllm import _custom_ops

from actor.engine.vllm import VllmEngine
from actor.engine.workers.vllm_worker import WorkerExtension
from bench.weights.__main__ import CHANGED_SHARE, change, loaded_tensors
from dcpo_async.weights.places import patches_folder, version_folder
from dcpo_async.weights.store import write_snapshot

# What vLLM asks before it packs. The worker imports this module, since its extension stands here.
_custom_ops._supports_onednn = False


class UnpackedExtension(WorkerExtension):
    """The real one, in a worker that packs nothing."""


def write(store: Path, version: int, tensors: dict[str, Tensor], skeleton: Path) -> Path:
    """A version's folder; those of odd numbers lose their patch."""
    write_snapshot(
        store, weights_version=version, run_id="bench", incarnation=1, step=version, tensors=tensors,
        skeleton_folder=skeleton,
    )  # fmt: skip
    if version % 2:
        shutil.rmtree(patches_folder(store), ignore_errors=True)
    return version_folder(store, version)


async def measure(model: Path, store: Path, repetitions: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each stage of an update, by the kind of update."""
    tensors = loaded_tensors(model, "bfloat16")
    engine = VllmEngine(
        dtype="bfloat16", device="cpu", max_model_tokens=512, max_responses=4, kv_cache_gib=0.2,
        worker_extension="bench.weights.in_place.UnpackedExtension",
    )  # fmt: skip
    await engine.start(write(store, 1, tensors, model), 1, None)
    seconds: dict[str, dict[str, list[float]]] = {"changed elements": {}, "whole": {}}
    for version in range(2, 2 * repetitions + 4):
        change(tensors)
        folder = write(store, version, tensors, model)
        began = time.perf_counter()
        timing = await engine.adopt(folder, version, None)
        stages = {"before the pause": time.perf_counter() - began - timing.pause_seconds, **timing.stage_seconds}
        # The first two warm up.
        if version > 3:
            for stage, value in stages.items():
                seconds["whole" if version % 2 else "changed elements"].setdefault(stage, []).append(value)
        shutil.rmtree(version_folder(store, version - 1))
    await engine.close()
    return seconds


def main() -> None:
    """Measure and print a line for each stage."""
    parser = argparse.ArgumentParser(prog="bench.weights.in_place", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="dcpo-bench-", dir="/dev/shm") as folder:
        seconds = asyncio.run(measure(options.model, Path(folder), options.repetitions))
    print(f"{CHANGED_SHARE:.1%} of the elements changed")
    for kind, stages in seconds.items():
        for stage, values in stages.items():
            print(f"{kind:18} {stage:18} {median(values):7.3f} s [{min(values):.3f}, {max(values):.3f}]")


if __name__ == "__main__":
    main()
