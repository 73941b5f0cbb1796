"""Terms of the loss beside that of the advantages: what a run has of them, and what each adds to a micro-batch's."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from dcpo_async.algorithm import PolicyLoss, reference_kl
from learner.policy.head import TokenLoss, TokenScores
from learner.policy.packing import MicroBatch

BatchTerm = Callable[[PolicyLoss, Tensor, slice], PolicyLoss]
"""From the loss so far, log-probs [tokens] and which of a batch's tokens they are, to the loss with a term more."""
Scores = Callable[[MicroBatch, TokenLoss | None], TokenScores]


class ReferenceTerm:
    """coefficient · Σ token_weight · reference_kl over all response tokens, whatever their advantage.

    Args:
        coefficient: β of arXiv 2402.03300, equation 3.
        reference: scores tokens under the reference; all ranks call it for each micro-batch.
    """

    name = "kl_reference"

    def __init__(self, coefficient: float, reference: Scores) -> None:
        self._coefficient, self._reference = coefficient, reference

    def of(self, batch: MicroBatch) -> BatchTerm:
        """The term of a micro-batch: the reference scores it once, without a gradient."""
        with torch.no_grad():
            logprobs = self._reference(batch, None).logprobs
        return partial(self._added, batch, logprobs)

    def _added(
        self, batch: MicroBatch, reference: Tensor, found: PolicyLoss, logprobs: Tensor, tokens: slice
    ) -> PolicyLoss:
        kl = torch.where(found.nonfinite, 0.0, reference_kl(logprobs, reference[tokens]))
        loss = found.loss + self._coefficient * (batch.token_weights[tokens] * kl).sum()
        return replace(found, loss=loss, penalties=(*found.penalties, kl.detach()))


def loss_terms(kl_coefficient: float, reference: Scores | None) -> list[ReferenceTerm]:
    """The terms of a run; none without a reference."""
    return [] if reference is None else [ReferenceTerm(kl_coefficient, reference)]
