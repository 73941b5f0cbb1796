"""How long a step waits for a checkpoint: `python -m bench.checkpoints --zero-stage 2`.

The ranks of a real engine take checkpoints as the trainer does. Beside it, in turns: one copy of the same bytes by the
same processes, and what a step waited for before: DeepSpeed's own writing, rank 0 reading every byte again for its
digest, fsync, rename, the removal of the checkpoint before. Seconds of the slowest rank. At the end, how much of its
pace a rank's arithmetic keeps while a checkpoint is written.
"""

import argparse
import asyncio
import shutil
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
from dcpo_async.devices import Devices
from dcpo_async.processes import module_argv
from dcpo_async.protocol.messages import Message
from dcpo_async.protocol.trainer_messages import Checkpointed
from dcpo_async.records import TrainingSample
from dcpo_async.run_folder import RunFolder
from dcpo_async.supervision import run_members
from learner.checkpoints.folder import publish_checkpoint, remove_superseded, writing_folder
from learner.checkpoints.saving import Checkpoints
from learner.policy.packing import pack
from learner.ranks import rank_environments
from learner.trainer.engine import TrainEngine

MATRIX = 512
SAMPLE = TrainingSample(
    position=0, index=0, prompt_token_ids=np.zeros(4, np.int32), token_ids=np.zeros(4, np.int32),
    behavior_logprobs=np.zeros(4, np.float32), old_logprobs=np.zeros(4, np.float32),
    token_lags=np.zeros(4, np.int32), advantage=1.0, token_weight=0.25,
)  # fmt: skip


class Ways:
    """What a step may wait for, on a real engine; every rank does the same."""

    def __init__(self, config: RunConfig) -> None:
        self.engine, self.step, self.told = TrainEngine(config), 0, list[Checkpointed]()
        self.folder = RunFolder(config.folder).checkpoints
        self.checkpoints = Checkpoints(config, self.engine, self.tell)
        self.checkpoints.begin(0)
        # The moments of AdamW come with the first update.
        scores = self.engine.policy(pack([SAMPLE]), lambda logprobs, _tokens: logprobs.sum())
        self.engine.backward(scores.loss, is_last=True)
        self.engine.update(0)
        self.regions = list(self.engine.snapshot(self.folder)._regions.values())
        self.num_bytes = sum(region.num_bytes for region in self.regions)
        self.target = torch.ones(self.num_bytes // 4, dtype=torch.uint8)

    async def tell(self, message: Message) -> None:
        """Take what the coordinator would hear."""
        assert isinstance(message, Checkpointed), message
        self.told.append(message)

    def copied(self) -> None:
        """Copy as many bytes as a snapshot has, by quarters: memory for another whole copy may not be there."""
        for region in self.regions:
            for part in region._bytes.split(len(self.target)):
                self.target[: len(part)].copy_(part)

    def offered(self) -> None:
        """As the trainer does."""
        self.step += 1
        self.checkpoints.offer(self.step)

    def as_before(self) -> None:
        """As the trainer did."""
        self.step += 1
        engine, writing = self.engine._deepspeed, writing_folder(self.folder, self.step)
        handover, engine.checkpoint_engine = engine.checkpoint_engine, TorchCheckpointEngine()
        engine.save_checkpoint(str(writing.parent), writing.name, save_latest=False)
        engine.checkpoint_engine = handover
        if self.engine.rank == 0:
            publish_checkpoint(writing.parent, self.step, "", self.engine.layout, {})
            remove_superseded(writing.parent, keep_last=1, keep_every_steps=None)


def slowest(way: Callable[[], object]) -> float:
    """Seconds of the rank that takes longest."""
    dist.barrier()
    started = time.monotonic()
    way()
    taken = torch.tensor(time.monotonic() - started)
    dist.all_reduce(taken, dist.ReduceOp.MAX)
    return float(taken)


async def measure(folder: Path, zero_stage: int, dtype: str, repetitions: int) -> None:
    """Print seconds of each way, medians and spread, and ratios within each round."""
    ways = Ways(
        RunConfig(
            folder=folder / "run",
            model=ModelSettings(path=str(folder / "model"), dtype=dtype),
            training=TrainingSettings(zero_stage=zero_stage),
            checkpoint=CheckpointSettings(interval_steps=1, keep_last=1),
        )
    )
    seconds: dict[str, list[float]] = {"one copy of the bytes": [], "stall": [], "until it stands": [], "as before": []}
    for repetition in range(repetitions + 1):
        found = [slowest(ways.copied), slowest(ways.offered)]
        await ways.checkpoints.whole()
        # Rank 0 is told, and it prints.
        found += [ways.told[-1].seconds if ways.told else 0.0, slowest(ways.as_before)]
        if repetition:
            for values, value in zip(seconds.values(), found, strict=True):
                values.append(value)
    paces = [await pace_beside(ways) for _ in range(repetitions)]
    if ways.engine.rank == 0:
        print(
            f"{ways.engine.schema.layout.num_bytes / GB:.3f} GB of parameters, {dtype}, {ways.engine.num_ranks} ranks, "
            f"ZeRO {zero_stage}; rank 0 copies {ways.num_bytes / GB:.3f} GB, "
            f"files have {ways.told[-1].num_bytes / GB:.3f} GB"
        )
        for name, values in seconds.items():
            shares = [value / before for value, before in zip(values, seconds["as before"], strict=True)]
            copies = [value / copy for value, copy in zip(values, seconds["one copy of the bytes"], strict=True)]
            print(f"{name:22} {spread(values)} s  {spread(shares)} of before  {spread(copies)} x one copy")
        print(f"pace of rank 0's arithmetic beside the writing, of its pace alone: {spread(paces)}")
    ways.engine.close()


async def pace_beside(ways: Ways) -> float:
    """Products of matrices in a second while a checkpoint is written, as a share of those just after it."""
    ways.offered()
    beside = pace(ways.checkpoints._is_writing)
    await ways.checkpoints.whole()
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
    parser = argparse.ArgumentParser(prog="bench.checkpoints", description=__doc__)
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
        words = module_argv("bench.checkpoints", *sys.argv[1:], "--folder", str(scratch))
        members, log_file = rank_environments(options.ranks, Path(scratch)), Path(scratch) / "log"
        environment = {**Devices((), 1).environment(), "OMP_NUM_THREADS": "1"}
        code = asyncio.run(run_members(words, members, log_file, environment))
        print(log_file.read_text())
        raise SystemExit(code)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
