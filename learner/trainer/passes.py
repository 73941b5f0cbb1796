"""What a rank does with samples beside their gradient: a plan, tensors, the run's loss, scores without a gradient."""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcpo_async.algorithm import BOUNDS, LOSSES, PolicyLoss
from dcpo_async.algorithm.loss import Bounds
from dcpo_async.columns import parted
from dcpo_async.config import AlgorithmSettings
from dcpo_async.records import TrainingSample
from learner.policy.model import correction
from learner.policy.packing import MicroBatch, pack, plan_micro_batches
from learner.trainer.loss_terms import loss_terms
from learner.trainer.step_sums import StepSums

if TYPE_CHECKING:
    # DeepSpeed takes seconds, and another engine than its own may do.
    from learner.trainer.engine import TrainEngine


class Passes:
    """Passes over samples, by the algorithm of the run; all ranks make the same calls.

    Args:
        bounds: of the clip, where they are none that the settings can name.
    """

    def __init__(self, algorithm: AlgorithmSettings, engine: "TrainEngine", bounds: Bounds | None = None) -> None:
        self._algorithm, self._engine = algorithm, engine
        self._correction, self._loss = correction(algorithm), LOSSES[algorithm.loss]
        self._terms = loss_terms(algorithm.kl_coefficient, engine.reference)
        self._bounds = bounds or partial(
            BOUNDS[algorithm.clip],
            epsilon_low=algorithm.epsilon_low,
            epsilon_high=algorithm.epsilon_high,
            max_ratio=algorithm.max_ratio,
        )

    @property
    def penalties(self) -> list[str]:
        """Names of the terms that the run's loss has beside that of the advantages."""
        return [term.name for term in self._terms]

    @torch.no_grad()
    def measure(self, samples: Sequence[TrainingSample], sums: StepSums) -> None:
        """Add the diagnostics of samples that have no gradient; they are few, and stand for all of their kind."""
        for chosen in self.plan(samples, at_least=0):
            batch = self.packed([samples[i] for i in chosen])
            scores = self._engine.policy(batch, None)
            sums.add_measured(batch, scores, self.loss_of(batch)(scores.logprobs, slice(None)))

    @torch.no_grad()
    def logprobs(self, samples: Sequence[TrainingSample]) -> list[NDArray[np.float32]]:
        """Log-probs of each sample's tokens under the current weights, float32 [tokens]."""
        found = [np.empty(0, dtype=np.float32) for _ in samples]
        for chosen in self.plan(samples, at_least=0):
            scores = self._engine.policy(pack([samples[i] for i in chosen]).on(self._engine.device), None)
            parts = parted(scores.logprobs.cpu().numpy(), [len(samples[i].token_ids) for i in chosen])
            for i, part in zip(chosen, parts, strict=True):
                found[i] = part
        return found

    def loss_of(self, batch: MicroBatch) -> Callable[[Tensor, slice], PolicyLoss]:
        """The loss of any of a micro-batch's tokens given their log-probs, with all terms; all ranks call it."""
        terms = [term.of(batch) for term in self._terms]

        def loss(logprobs: Tensor, tokens: slice) -> PolicyLoss:
            return reduce(lambda found, term: term(found, logprobs, tokens), terms, first(logprobs, tokens))

        first = partial(self.policy_loss, batch)
        return loss

    def policy_loss(self, batch: MicroBatch, logprobs: Tensor, tokens: slice) -> PolicyLoss:
        """The advantages' loss of some of a micro-batch's tokens; token weights are those of the whole step."""
        old, behavior = batch.old_logprobs[tokens], batch.behavior_logprobs[tokens]
        return self._loss(
            logprobs,
            old,
            batch.advantages[tokens],
            batch.token_weights[tokens],
            bounds=self._bounds,
            max_ratio=self._algorithm.max_ratio,
            importance_weights=None if self._correction is None else self._correction(old, behavior),
            sequences=batch.sequences[tokens] if self._algorithm.ratio == "sequence" else None,
        )

    def packed(self, samples: Sequence[TrainingSample]) -> MicroBatch:
        """The samples on this rank's device, with the log-probs that the run's ratios are anchored on."""
        batch = pack(samples).on(self._engine.device)
        is_proximal = self._algorithm.old == "proximal"
        return batch if is_proximal else batch._replace(old_logprobs=batch.behavior_logprobs)

    def plan(self, samples: Sequence[TrainingSample], at_least: int) -> list[list[int]]:
        """This rank's micro-batches, filled up with empty ones: in a collective every rank has to take part."""
        engine = self._engine
        plan = plan_micro_batches(samples, engine.micro_batch_tokens, one_by_one=not engine.is_packed)
        num_micro_batches = engine.largest_of_ranks(max(at_least, len(plan)))
        return plan + [[] for _ in range(num_micro_batches - len(plan))]
