"""What a step's metrics are made of: sums that add up over micro-batches and ranks, and their summary."""

import torch

from dcpo_async.algorithm import PolicyLoss, TokenDiagnostics
from learner.policy.head import TokenScores
from learner.policy.packing import MicroBatch

_SUMS = ("loss", "tokens")


class StepSums:
    """Sums of one optimizer step on one rank.

    Attributes:
        values: float64 [sums], one tensor, so that ranks merge it in a single all-reduce SUM.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.values = torch.cat(
            [torch.zeros(len(_SUMS), dtype=torch.float64, device=device), TokenDiagnostics.zeros(device).sums]
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
        self.values[len(_SUMS) :] += diagnostics.sums

    def summary(self) -> dict[str, float]:
        """Return the metrics of all that was added: those of TokenDiagnostics and

        loss: of the whole step.  tokens: prompt and response tokens trained.
        """
        values = self.values.cpu()
        diagnostics = TokenDiagnostics(values[len(_SUMS) :]).summary()
        sums = dict(zip(_SUMS, values[: len(_SUMS)].tolist(), strict=True))
        return {**sums, "lag_mean": diagnostics.pop("lag"), **diagnostics}
