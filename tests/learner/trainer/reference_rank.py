"""A rank that takes a step, and then the gradient of one with a KL term; a test starts it: `CONFIG RESULT`."""

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import deepspeed
import torch
from deepspeed.utils import safe_get_full_grad

from dcpo_async.config import RunConfig
from dcpo_async.records import TrainingSample
from learner.trainer.engine import TrainEngine
from learner.trainer.step_sums import StepSums
from learner.trainer.trainer import Trainer
from tests.learner.trainer.test_trainer import fixed_samples

COEFFICIENT = 0.5


def samples_of(rank: int = 0, num_ranks: int = 1) -> list[TrainingSample]:
    """A rank's part of 24 samples, every third of them of advantage 0."""
    return [
        dataclasses.replace(sample, kl_coefficient=COEFFICIENT, advantage=sample.advantage if number % 3 else 0.0)
        for number, sample in enumerate(fixed_samples(0))
    ][rank::num_ranks]


def main() -> None:
    """Write weights, gradient, loss and metric of the second step."""
    config = RunConfig.model_validate_json(Path(sys.argv[1]).read_bytes())
    engine = TrainEngine(config)
    trainer = Trainer(config, engine, SimpleNamespace(tell=None), publication=None)  # type: ignore[arg-type]
    samples = samples_of(engine.rank, engine.num_ranks)
    assert sum(sample.has_gradient for sample in samples) == sum(len(sample.token_ids) > 0 for sample in samples)
    # At the start policy and reference are the same.
    first = trainer.train_step(samples)
    sums, module = StepSums(engine.device, trainer.passes.penalties), engine._deepspeed.module
    plan = trainer.passes.plan(samples, at_least=1)
    for number, chosen in enumerate(plan, start=1):
        trainer.forward_backward_step([samples[i] for i in chosen], sums, is_last=number == len(plan))
    engine.add_over_ranks(sums.values)
    gradients = {name: safe_get_full_grad(parameter) for name, parameter in module.named_parameters()}
    with deepspeed.zero.GatheredParameters(list(module.parameters())):
        weights = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    if engine.rank == 0:
        out = Path(sys.argv[2])
        torch.save({"weights": weights, "gradients": gradients}, out)
        summary = sums.summary()
        metrics = {"first": first["kl_reference"], "kl": summary["kl_reference"], "loss": summary["loss"]}
        out.with_suffix(".json").write_text(json.dumps(metrics))
    engine.close()


if __name__ == "__main__":
    main()
