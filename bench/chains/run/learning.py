"""Optimizer steps on a batch, by the learner's own samples, losses and diagnostics; and the clip by old probability."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bench.chains.plan import TENTHS
from bench.chains.run.policy import Policy
from dcpo_async.algorithm import PolicyLoss
from dcpo_async.algorithm.loss import Bounds
from dcpo_async.config import RunConfig
from dcpo_async.records import TrainingSample
from learner.coordinator.shards import StepGroup, looked_at, step_metrics, step_samples
from learner.policy.packing import MicroBatch
from learner.trainer.passes import Passes
from learner.trainer.step_sums import StepSums

BY_TENTH = ("tokens", "clipped_high", "clipped_low")
"""Counted for each tenth of the old probability."""


class Learning:
    """Trains a policy on the batches of a run.

    Args:
        bounds: of the clip; None for those of the settings.

    Attributes:
        step: optimizer steps done.
    """

    def __init__(self, config: RunConfig, policy: Policy, bounds: Bounds | None) -> None:
        self._config, self._policy = config, policy
        self._passes = Passes(config.algorithm, policy, bounds)  # type: ignore[arg-type]
        self.step = 0

    def train(self, groups: Sequence[StepGroup]) -> list[dict[str, float]]:
        """Take the steps of one batch; returns the metrics of each.

        Args:
            groups: U·B, in lease order; a weights version is called by the optimizer steps behind it.
        """
        version_steps = {step: step for step in range(self.step + 1)}
        size, first = self._config.training.groups_per_step, self.step
        parts = [groups[start : start + size] for start in range(0, len(groups), size)]
        batch = [step_samples(part, first + number, self._config, version_steps) for number, part in enumerate(parts)]
        if self._config.algorithm.old == "proximal":
            batch = [self._anchored(samples) for samples in batch]
        return [self._train_step(part, samples) for part, samples in zip(parts, batch, strict=True)]

    def _anchored(self, samples: Sequence[TrainingSample]) -> list[TrainingSample]:
        """The samples with the log-probs of the batch's first weights, which the old ones are."""
        found = self._passes.logprobs(samples)
        return [dataclasses.replace(sample, old_logprobs=old) for sample, old in zip(samples, found, strict=True)]

    def _train_step(self, groups: Sequence[StepGroup], samples: Sequence[TrainingSample]) -> dict[str, float]:
        sums, tenths = StepSums("cpu"), np.zeros((len(BY_TENTH), TENTHS))
        chosen = looked_at(samples, self._config.training.measured_share)
        with_gradient = [sample for sample in chosen if sample.has_gradient]
        if with_gradient:
            batch = self._passes.packed(with_gradient)
            loss = self._passes.loss_of(batch)
            is_whole = self._config.algorithm.ratio == "sequence"
            scores = self._policy.policy(batch, lambda logprobs, tokens: loss(logprobs, tokens).loss, is_whole=is_whole)
            scores.loss.backward()
            found = loss(scores.logprobs, slice(None))
            sums.add(batch, scores, found)
            tenths += by_tenth(batch, found)
        self._passes.measure([sample for sample in chosen if not sample.has_gradient], sums)
        norm, rate = self._policy.update(self.step)
        self.step += 1
        return {
            **sums.summary(),
            **step_metrics(groups, self._config.sampling.group_size),
            **{f"{name}_q{tenth}": tenths[row, tenth] for row, name in enumerate(BY_TENTH) for tenth in range(TENTHS)},
            "grad_norm": norm,
            "grad_clipped": float(norm > self._config.training.gradient_clip),
            "learning_rate": rate,
        }


@torch.no_grad()
def by_tenth(batch: MicroBatch, found: PolicyLoss) -> np.ndarray:
    """Tokens with a gradient by tenth of their old probability, float64 [len(BY_TENTH), 10]: all, clipped high, low."""
    place = (batch.old_logprobs.exp() * TENTHS).long().clamp(0, TENTHS - 1)

    def count(chosen: Tensor) -> Tensor:
        return torch.bincount(place[chosen], minlength=TENTHS)

    everything = torch.ones_like(place, dtype=torch.bool)
    return (
        torch.stack([count(chosen) for chosen in (everything, found.clipped_high, found.clipped_low)]).double().numpy()
    )
