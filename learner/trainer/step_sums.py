"""What a step's metrics are made of: sums that add up over micro-batches and ranks, and their summary."""

from collections.abc import Sequence

import torch

from dcpo_async.algorithm import PolicyLoss, TokenDiagnostics
from learner.policy.head import TokenScores
from learner.policy.packing import MicroBatch

_SUMS = ("loss", "tokens")


class StepSums:
    """Sums of one optimizer step on one rank.

    Args:
        device: of the model.
        penalties: names of the terms that are added to the loss, in the order of `PolicyLoss.penalties`.

    Attributes:
        values: float64 [sums], one tensor, so that ranks merge it in a single all-reduce SUM.
    """

    def __init__(self, device: torch.device | str, penalties: Sequence[str] = ()) -> None:
        self._names = (*_SUMS, *penalties)
        self.values = torch.cat(
            [torch.zeros(len(self._names), dtype=torch.float64, device=device), TokenDiagnostics.zeros(device).sums]
        )

    def add(self, batch: MicroBatch, scores: TokenScores, loss: PolicyLoss) -> None:
        """Add a micro-batch that trains; its loss is its share of the step's. Does not wait for the device."""
        self.values[0] += loss.loss.detach()
        if len(batch.token_ids):
            self.values[1] += batch.input_ids.numel()
        self.add_measured(batch, scores, loss)

    def add_measured(self, batch: MicroBatch, scores: TokenScores, loss: PolicyLoss) -> None:
        """Add a micro-batch that is only looked at."""
        diagnostics = TokenDiagnostics.of_tokens(
            scores.logprobs,
            batch.old_logprobs,
            batch.behavior_logprobs,
            batch.advantages,
            loss,
            scores.entropies,
            batch.token_lags,
            batch.token_counts,
        )
        for place, values in enumerate(loss.penalties, start=len(_SUMS)):
            self.values[place] += (values * batch.token_counts).sum()
        self.values[len(self._names) :] += diagnostics.sums

    def summary(self) -> dict[str, float]:
        """Return the metrics of all that was added: those of TokenDiagnostics and

        loss: of the whole step.  tokens: prompt and response tokens trained.
        And the mean over all response tokens of each term that is added to the loss.
        """
        values, size = self.values.cpu(), len(self._names)
        diagnostics = TokenDiagnostics(values[size:]).summary()
        sums = dict(zip(self._names, values[:size].tolist(), strict=True))
        sums |= {name: sums[name] / max(1.0, diagnostics["num_tokens"]) for name in self._names[len(_SUMS) :]}
        return {**sums, "lag_mean": diagnostics.pop("lag"), **diagnostics}
