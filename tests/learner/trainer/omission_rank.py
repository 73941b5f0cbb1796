"""A rank that takes a step's gradient with and without samples of advantage 0; torchrun starts it: `CONFIG RESULT`."""

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from deepspeed.utils import safe_get_full_grad

from dcpo_async.config import AlgorithmSettings, RunConfig
from dcpo_async.records import TrainingSample
from learner.trainer.engine import TrainEngine
from learner.trainer.passes import Passes
from learner.trainer.step_sums import StepSums
from learner.trainer.trainer import Trainer
from tests.learner.trainer.test_trainer import fixed_samples

ARMS: dict[str, dict[str, Any]] = {
    "dcpo": {},
    "grpo": {"advantage": "group", "clip": "fixed"},
    "dapo": {"advantage": "group", "clip": "fixed", "epsilon_high": 0.28, "loss_mean": "token"},
    "gspo": {"clip": "fixed", "ratio": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4},
    "dr-grpo": {"clip": "fixed", "loss_mean": "constant"},
    "cispo": {"clip": "fixed", "loss": "weighted", "loss_mean": "token"},
    "proximal, truncated": {"old": "proximal", "updates_per_batch": 2},
    "proximal, masked": {"old": "proximal", "updates_per_batch": 2, "correction": "masked"},
}


def samples_of(rank: int, num_ranks: int) -> list[TrainingSample]:
    """A rank's part of 24 samples, every third of them of advantage 0; ratios are on both sides of the bounds."""
    samples = []
    for number, sample in enumerate(fixed_samples(0)[rank::num_ranks]):
        advantage = 0.0 if number % 3 == 0 else sample.advantage
        old = sample.behavior_logprobs - 0.1
        samples.append(dataclasses.replace(sample, advantage=advantage, old_logprobs=old))
    return samples


def gradient(trainer: Trainer, samples: list[TrainingSample]) -> torch.Tensor:
    """Of the whole step, of all parameters; the weights stay as they are."""
    sums = StepSums(trainer.engine.device)
    plan = trainer.passes.plan(samples, at_least=1)
    for number, chosen in enumerate(plan, start=1):
        trainer.forward_backward_step([samples[i] for i in chosen], sums, is_last=number == len(plan))
    engine = trainer.engine._deepspeed
    gradients = [safe_get_full_grad(parameter).flatten() for parameter in engine.module.parameters()]
    for group in engine.optimizer.param_groups:
        group["lr"] = 0.0
    trainer.engine.update(step=0)
    return torch.cat(gradients).double()


def main() -> None:
    """Write for each algorithm the norm of the gradient, and of its difference from the one without omission."""
    config = RunConfig.model_validate_json(Path(sys.argv[1]).read_bytes())
    engine, found = TrainEngine(config), {}
    samples = samples_of(engine.rank, engine.num_ranks)
    trainer = Trainer(config, engine, SimpleNamespace(tell=None), publication=None)  # type: ignore[arg-type]
    for name, settings in ARMS.items():
        algorithm = AlgorithmSettings(**settings)
        trainer.config = config.model_copy(update={"algorithm": algorithm})
        trainer.passes = Passes(algorithm, engine)
        whole = gradient(trainer, samples)
        part = gradient(trainer, [sample for sample in samples if sample.has_gradient])
        found[name] = [whole.norm().item(), (whole - part).norm().item()]
    nothing = gradient(trainer, []).norm().item()
    if engine.rank == 0:
        Path(sys.argv[2]).write_text(json.dumps({"arms": found, "of no samples": nothing}))
    engine.close()


if __name__ == "__main__":
    main()
