"""How long a step waits for a checkpoint: `python -m bench.checkpoint --zero-stage 2`.

The ranks of a real engine take checkpoints as the trainer does. Beside it, in turns: one copy of the same bytes by the
same processes, and what a step waited for before: DeepSpeed's own writing, rank 0 reading every byte again to digest it,
fsync, rename, the removal of the checkpoint before. Seconds of the slowest rank. At the end, how much of its pace a
rank's arithmetic keeps while a checkpoint is written.
"""

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.distributed as dist
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

from bench.publication import GB, make_model
from dcpo_async.config import CheckpointSettings, ModelSettings, RunConfig, TrainingSettings
from dcpo_async.protocol.messages import Message
from dcpo_async.protocol.trainer_messages import Checkpointed
from dcpo_async.records import TrainingSample
from dcpo_async.run_folder import RunFolder
from learner.checkpoints.folder import publish_checkpoint, remove_superseded, writing_folder
from learner.checkpoints.saving import Checkpoints
from learner.trainer.engine import TrainEngine
from learner.trainer.packing import pack

MATRIX = 512
SAMPLE = TrainingSample(
    position=0, index=0, prompt_token_ids=np.zeros(4, np.int32), token_ids=np.zeros(4, np.int32),
    behavior_logprobs=np.zeros(4, np.float32), old_logprobs=np.zeros(4, np.float32),
    token_lags=np.zeros(4, np.int32), advantage=1.0, token_weight=0.25,
)  # fmt: skip


async def measure(folder: Path, zero_stage: int, dtype: str, repetitions: int) -> None:
    """Print seconds of each way, medians and spread, and ratios within each round."""
    config = RunConfig(
        folder=folder / "run",
        model=ModelSettings(path=str(folder / "model"), dtype=dtype),
        training=TrainingSettings(zero_stage=zero_stage),
        checkpoint=CheckpointSettings(interval_steps=1, keep_last=1),
    )
    engine = TrainEngine(config)
    told: list[Checkpointed] = []

    async def tell(message: Message) -> None:
        assert isinstance(message, Checkpointed), message
        told.append(message)

    checkpoints = Checkpoints(config, engine, tell)
    checkpoints.begin(0)
    # The moments of AdamW come with the first update.
    logprobs, _ = engine.policy(pack([SAMPLE]))
    engine.backward(logprobs.sum(), is_last=True)
    engine.update(0)
    snapshot = engine.snapshot(folder)
    num_bytes = sum(region.num_bytes for region in snapshot._regions.values())
    target = torch.ones(num_bytes // 4, dtype=torch.uint8)
    step = 0

    def copied() -> None:
        """Quarter by quarter, since memory for another whole copy may not be there."""
        for region in snapshot._regions.values():
            for part in region._bytes.split(len(target)):
                target[: len(part)].copy_(part)

    def offered() -> None:
        checkpoints.offer(step)

    def as_before() -> None:
        handover, engine._deepspeed.checkpoint_engine = engine._deepspeed.checkpoint_engine, TorchCheckpointEngine()
        try:
            writing = writing_folder(RunFolder(config.folder).checkpoints, step)
            engine._deepspeed.save_checkpoint(str(writing.parent), writing.name, save_latest=False)
            if engine.rank == 0:
                publish_checkpoint(writing.parent, step, "", engine.layout, {})
                remove_superseded(writing.parent, keep_last=1, keep_every_steps=None)
        finally:
            engine._deepspeed.checkpoint_engine = handover

    def slowest(way: Callable[[], object]) -> float:
        dist.barrier()
        started = time.monotonic()
        way()
        taken = torch.tensor(time.monotonic() - started)
        dist.all_reduce(taken, dist.ReduceOp.MAX)
        return float(taken)

    seconds: dict[str, list[float]] = {"one copy of the bytes": [], "stall": [], "until it stands": [], "as before": []}
    for repetition in range(repetitions + 1):
        round_seconds = [slowest(copied)]
        step += 1
        round_seconds.append(slowest(offered))
        await checkpoints.whole()
        # The rank that is told of it is the first.
        round_seconds.append(told[-1].seconds if told else 0.0)
        step += 1
        round_seconds.append(slowest(as_before))
        if repetition:
            for values, value in zip(seconds.values(), round_seconds, strict=True):
                values.append(value)
    paces = [await pace_beside(checkpoints, step + number) for number in range(1, repetitions + 1)]
    if engine.rank == 0:
        print(
            f"{engine.schema.layout.num_bytes / GB:.3f} GB of parameters, {dtype}, {engine.num_ranks} ranks, ", end=""
        )
        print(f"ZeRO {zero_stage}; rank 0 copies {num_bytes / GB:.3f} GB, files have {told[-1].num_bytes / GB:.3f} GB")
        for name, values in seconds.items():
            shares = [value / before for value, before in zip(values, seconds["as before"], strict=True)]
            copies = [value / copy for value, copy in zip(values, seconds["one copy of the bytes"], strict=True)]
            print(f"{name:22} {spread(values)} s  {spread(shares)} of before  {spread(copies)} x one copy")
        print(f"pace of rank 0's arithmetic beside the writing, of its pace alone: {spread(paces)}")
    engine.close()


async def pace_beside(checkpoints: Checkpoints, step: int) -> float:
    """Products of matrices in a second while a checkpoint is written, as a share of those just after it."""
    checkpoints.offer(step)
    beside = pace(lambda: checkpoints._is_writing())
    await checkpoints.whole()
    ends_at = time.monotonic() + 3.0
    return beside / pace(lambda: time.monotonic() < ends_at)


def pace(goes_on: Callable[[], bool]) -> float:
    """Products of matrices in a second, as long as something goes on."""
    matrix, count, started = torch.ones(MATRIX, MATRIX), 0, time.monotonic()
    while goes_on():
        matrix @ matrix
        count += 1
    return count / (time.monotonic() - started)


def spread(values: list[float]) -> str:
    """Median, smallest and largest."""
    return f"{median(values):7.3f} [{min(values):.3f}, {max(values):.3f}]"


def main() -> None:
    """Make a model, start the ranks, which measure."""
    parser = argparse.ArgumentParser(prog="bench.checkpoint", description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--zero-stage", type=int, choices=(0, 1, 2, 3), default=2)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of parameters in bfloat16")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="of a run of this program that has started the ranks")
    options = parser.parse_args()
    if options.folder is not None:
        asyncio.run(measure(options.folder, options.zero_stage, options.dtype, options.repetitions))
        return
    # On the disk that holds temporary files, as a run folder would be.
    scratch = tempfile.mkdtemp(prefix="dcpo-bench-")
    try:
        make_model(Path(scratch) / "model", options.gigabytes)
        ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(options.ranks)]
        environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        words = [*ranks, "-m", "bench.checkpoint", *sys.argv[1:], "--folder", scratch]
        raise SystemExit(subprocess.run(words, env=environment, check=False).returncode)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
