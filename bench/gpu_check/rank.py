"""The one rank that checks train with: `python -m bench.gpu_check.rank CONFIG PART`; prints what it saw as JSON."""

import argparse
import asyncio
import json
import os
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.gpu_check.findings import Place, sync
from bench.gpu_check.model import made_samples
from dcpo_async.config import RunConfig
from dcpo_async.protocol.messages import Message
from dcpo_async.records import TrainingSample
from learner.checkpoints.saving import Checkpoints
from learner.trainer.engine import TrainEngine
from learner.trainer.passes import Passes

NUM_STEPS = 4
SAVED_STEP = 2
GB = 1e9


class Rank:
    """A trainer without the network: an engine, and steps on made samples."""

    def __init__(self, config: RunConfig, place: Place) -> None:
        self._config, self._place = config, place
        self.engine = TrainEngine(config)
        self._passes = Passes(config.algorithm, self.engine)

    def step(self, step: int, samples: list[TrainingSample], mark: Callable[[str], None] = lambda name: None) -> float:
        """One optimizer step; the loss, NaN where the update was skipped."""
        torch.manual_seed(step)
        self.engine.set_learning_rate(step)
        plan, total = self._passes.plan(samples, at_least=1), 0.0
        for number, chosen in enumerate(plan, start=1):
            batch = self._passes.packed([samples[i] for i in chosen])
            loss = self._passes.loss_of(batch)
            scores = self.engine.policy(batch, lambda logprobs, tokens, loss=loss: loss(logprobs, tokens).loss)
            mark("forward, with the head")
            self.engine.backward(scores.loss, is_last=number == len(plan))
            mark("backward")
            total += float(scores.loss.detach())
        is_done = self.engine.update(step) is not None
        mark("optimizer")
        return total if is_done else float("nan")

    async def save(self, step: int) -> tuple[float, float]:
        """Write a checkpoint as a run does; seconds that training would stand still, and until it is on the disk."""
        checkpoints = Checkpoints(self._config, self.engine, _told_nobody)
        checkpoints.begin(0)
        # As a run's first batch does: not due yet, it claims the memory.
        checkpoints.offer(step)
        began = time.perf_counter()
        await checkpoints.offer_last(step)
        copied = time.perf_counter()
        await checkpoints.whole()
        return copied - began, time.perf_counter() - began

    def samples(self, step: int) -> list[TrainingSample]:
        """Of two micro-batches and some more."""
        return made_samples(self._place, step, 2 * self.engine.micro_batch_tokens + 60)


def train(rank: Rank, config: RunConfig, mode: str) -> dict[str, Any]:
    """Train from the newest checkpoint on; `first` ends by SIGKILL right after it wrote one."""
    folder, losses = config.folder / "checkpoints", {}
    step = SAVED_STEP if mode == "resumed" else 0
    if step:
        rank.engine.load(folder, step, config.digest())
    while step < NUM_STEPS:
        losses[step] = rank.step(step, rank.samples(step))
        step += 1
        if step == SAVED_STEP and mode == "first":
            asyncio.run(rank.save(step))
            print(json.dumps({"losses": losses}), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    adam = [state["step"] for state in rank.engine._deepspeed.optimizer.state.values() if "step" in state]
    seen: dict[str, Any] = {"losses": losses, "adam": sorted({str(torch.as_tensor(each).device) for each in adam})}
    if mode == "whole":
        huge = [replace(sample, advantage=3e38) for sample in rank.samples(step)]
        seen["after an overflow"] = [rank.step(step, huge), rank.step(step + 1, rank.samples(step))]
        seen["of nothing"] = rank.step(step + 2, [])
        sums = torch.ones(3, dtype=torch.float64, device=rank.engine.device)
        rank.engine.add_over_ranks(sums)
        seen["float64 sums"] = sums.tolist()
    return seen


def memory(rank: Rank, before: float) -> dict[str, Any]:
    """GB at their peak after each stage of the second step, whose optimizer states stand."""
    device = rank.engine.device
    num_parameters = sum(getattr(p, "ds_numel", p.numel()) for p in rank.engine.model.parameters())
    peaks = {"start": _peak_gb(device)}
    samples = made_samples(rank._place, 0, rank.engine.micro_batch_tokens)
    rank.step(0, samples)

    def mark(name: str) -> None:
        sync(device)
        peaks[name] = _peak_gb(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    mark("first step")
    rank.step(1, samples, mark)
    return {"before": before, "peaks": peaks, "parameters": num_parameters}


def storage(rank: Rank, config: RunConfig) -> dict[str, Any]:
    """Seconds and bytes of a checkpoint of a model whose optimizer has stepped once."""
    rank.step(0, rank.samples(0)[:2])
    folder = config.folder / "checkpoints"
    stall, saved = asyncio.run(rank.save(1))
    began = time.perf_counter()
    rank.engine.load(folder, 1, config.digest())
    sync(rank.engine.device)
    loaded = time.perf_counter() - began
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"stall": stall, "save": saved, "load": loaded, "bytes": size}


async def _told_nobody(message: Message) -> None:
    """There is no coordinator here."""


def _peak_gb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB


def main() -> None:
    """Do one part, and print what was seen."""
    parser = argparse.ArgumentParser(prog="bench.gpu_check.rank")
    parser.add_argument("config", type=Path)
    parser.add_argument("part", choices=("whole", "first", "resumed", "memory", "storage"))
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    config = RunConfig.model_validate_json(options.config.read_bytes())
    torch.set_num_threads(1)
    before = _peak_gb(torch.device(options.device))
    rank = Rank(config, Place(options.device, config.folder.parent, config.folder))
    if options.part == "memory":
        seen = memory(rank, before)
    elif options.part == "storage":
        seen = storage(rank, config)
    else:
        seen = train(rank, config, options.part)
    rank.engine.close()
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
