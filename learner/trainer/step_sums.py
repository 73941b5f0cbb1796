"""What a step's metrics are made of: sums that add up over micro-batches and ranks, and their summary."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dcpo_async.algorithm import TokenDiagnostics
from dcpo_async.records import TrainingSample
from learner.trainer.packing import MicroBatch

_COUNTS = ("loss", "tokens", "slots", "responses", "response_tokens")


class StepSums:
    """Sums of one optimizer step on one rank.

    Attributes:
        values: float64 [sums], one tensor, so that ranks merge it in a single all-reduce SUM.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.values = torch.cat(
            [torch.zeros(len(_COUNTS), dtype=torch.float64, device=device), TokenDiagnostics.zeros(device).sums]
        )

    def add(
        self,
        samples: Sequence[TrainingSample],
        micro_batch: MicroBatch,
        loss: Tensor,
        diagnostics: TokenDiagnostics,
    ) -> None:
        """Add one micro-batch; loss is its share of the step's loss. Does not wait for the device."""
        response_tokens = len(micro_batch.token_ids)
        counts = {
            "tokens": response_tokens + sum(len(sample.prompt_token_ids) for sample in samples),
            "slots": micro_batch.input_ids.numel() if samples else 0,
            "responses": len(samples),
            "response_tokens": response_tokens,
        }
        self.values[0] += loss.detach()
        self.values[1 : len(_COUNTS)] += torch.tensor(
            [float(counts[name]) for name in _COUNTS[1:]], dtype=torch.float64
        ).to(self.values.device, non_blocking=True)
        self.values[len(_COUNTS) :] += diagnostics.sums

    def summary(self) -> dict[str, float]:
        """Return the metrics of all that was added: those of TokenDiagnostics and

        loss: of the whole step.  tokens: prompt and response tokens trained.
        response_length_mean: tokens, over responses that are not empty.
        padding_share: padding / all places in the micro-batches.
        """
        values = self.values.cpu()
        counts = dict(zip(_COUNTS, values[: len(_COUNTS)].tolist(), strict=True))
        diagnostics = TokenDiagnostics(values[len(_COUNTS) :]).summary()
        return {
            "loss": counts["loss"],
            "tokens": counts["tokens"],
            "response_length_mean": counts["response_tokens"] / max(1.0, counts["responses"]),
            "padding_share": 1 - counts["tokens"] / max(1.0, counts["slots"]) if counts["slots"] else 0.0,
            "lag_mean": diagnostics.pop("lag"),
            **diagnostics,
        }
