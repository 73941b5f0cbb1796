"""Token-level metrics of a step, kept as sums so that micro-batches and ranks merge by addition."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dcpo_async.algorithm.loss import MAX_LOG_RATIO, PolicyLoss, require_flat
from dcpo_async.errors import AlgorithmError

_SUMS = (
    "num_tokens",
    "nonzero_tokens",
    "clipped",
    "dual_clipped",
    "micro_batches",
    "micro_batch_tcr",
    "finite_tokens",
    "ratio",
    "weight",
    "weight_squared",
    "kl_behavior",
    "entropy",
    "lag",
)
# Bins are centred on multiples of the width, so that an unchanged token counts at a ratio of exactly 1.
_BIN_WIDTH = 0.005
_HALF_BINS = round(MAX_LOG_RATIO / _BIN_WIDTH)
_SIZE = len(_SUMS) + 2 * _HALF_BINS + 1
_QUANTILES = {"ratio_p01": 0.01, "ratio_p50": 0.5, "ratio_p99": 0.99, "ratio_max": 1.0}


@dataclass(frozen=True, slots=True, eq=False)
class TokenDiagnostics:
    """Sums and a log-ratio histogram over response tokens.

    Attributes:
        sums: float64 [size], the same size always; merged by addition or all-reduce SUM. Counts are exact.
    """

    sums: Tensor

    def __post_init__(self) -> None:
        if self.sums.shape != (_SIZE,) or self.sums.dtype != torch.float64:
            raise AlgorithmError(
                f"sums of shape {tuple(self.sums.shape)} and {self.sums.dtype}: must be float64 [{_SIZE}]; "
                "run the same release everywhere"
            )

    @classmethod
    def zeros(cls, device: torch.device | str = "cpu") -> "TokenDiagnostics":
        """Return the diagnostics of no tokens: where a sum starts, and what an idle rank contributes."""
        return cls(torch.zeros(_SIZE, dtype=torch.float64, device=device))

    @classmethod
    def of_tokens(
        cls,
        policy_logprobs: Tensor,
        old_logprobs: Tensor,
        behavior_logprobs: Tensor,
        advantages: Tensor,
        policy_loss: PolicyLoss,
        entropy: Tensor,
        lag: Tensor,
    ) -> "TokenDiagnostics":
        """Return the diagnostics of one micro-batch, without gradient and without waiting for the device.

        All are flat [tokens], response tokens only: padding would count.

        Args:
            policy_logprobs, old_logprobs, behavior_logprobs: current, anchor and engine log-probs.
            advantages: the response's advantage at each of its tokens.
            policy_loss: what policy_loss returned for the same tokens.
            entropy: nats, of the current policy at each token.
            lag: optimizer steps between this step and the weights that sampled the token.

        Raises:
            AlgorithmError: shapes that differ or are not flat.
        """
        require_flat(policy_logprobs, old_logprobs, behavior_logprobs, advantages, policy_loss.ratio, entropy, lag)
        policy, old, behavior, entropy, lag = (
            tensor.detach().double() for tensor in (policy_logprobs, old_logprobs, behavior_logprobs, entropy, lag)
        )
        finite = ~policy_loss.nonfinite & behavior.isfinite() & entropy.isfinite()
        log_ratio = _log_ratio(policy, old, finite)
        log_weight = _log_ratio(policy, behavior, finite)
        num_tokens = torch.full((), float(policy.numel()), dtype=torch.float64, device=policy.device)
        clipped = (policy_loss.clipped_high | policy_loss.clipped_low).sum()
        has_tokens = num_tokens.clamp(max=1)

        def total(values: Tensor) -> Tensor:
            return torch.where(finite, values, 0.0).sum()

        sums = {
            "num_tokens": num_tokens,
            "nonzero_tokens": (advantages.detach() != 0).sum(),
            "clipped": clipped,
            "dual_clipped": policy_loss.dual_clipped.sum(),
            "micro_batches": has_tokens,
            "micro_batch_tcr": clipped / num_tokens.clamp(min=1),
            "finite_tokens": finite.sum(),
            "ratio": total(log_ratio.exp()),
            "weight": total(log_weight.exp()),
            "weight_squared": total((2 * log_weight).exp()),
            "kl_behavior": total(log_weight.expm1() - log_weight),
            "entropy": total(entropy),
            "lag": total(lag),
        }
        histogram = torch.zeros(2 * _HALF_BINS + 1, dtype=torch.float64, device=policy.device)
        histogram.index_add_(0, (log_ratio / _BIN_WIDTH).round().long() + _HALF_BINS, finite.double())
        return cls(torch.cat([torch.stack([sums[name].double() for name in _SUMS]), histogram]))

    def __add__(self, other: "TokenDiagnostics") -> "TokenDiagnostics":
        return TokenDiagnostics(self.sums + other.sums)

    def summary(self) -> dict[str, float]:
        """Return the metrics of all tokens merged so far; a share or mean of no tokens is 0.

        tcr: tokens whose loss the clip bound changed, dual clip apart / all tokens (arXiv 2509.02333).
        tcr_nonzero: the same / tokens with a non-zero advantage.
        tcr_micro_batch_mean: mean of the micro-batches' own tcr, as the paper has it; depends on the layout.
        dual_clip_rate: tokens held at max_ratio / all tokens.
        ratio_mean, ratio_p01, ratio_p50, ratio_p99, ratio_max: current/old; the last four to within 0.25 %.
        ess_fraction: (Σw)² / (n·Σw²) of w = current/behavior; 1 if on-policy, 1/n if one token outweighs all.
        kl_behavior: nats, mean of w − 1 − log w, an estimate of KL(behavior ‖ current).
        entropy: nats, mean.  lag: optimizer steps, mean.
        nonfinite_tokens: with a log-prob or entropy that is not finite; in no mean above.  num_tokens: all.
        """
        values = self.sums.detach().cpu()
        sums = dict(zip(_SUMS, values[: len(_SUMS)].tolist(), strict=True))
        num_tokens, finite_tokens = sums["num_tokens"], sums["finite_tokens"]
        return {
            "tcr": _share(sums["clipped"], num_tokens),
            "tcr_nonzero": _share(sums["clipped"], sums["nonzero_tokens"]),
            "tcr_micro_batch_mean": _share(sums["micro_batch_tcr"], sums["micro_batches"]),
            "dual_clip_rate": _share(sums["dual_clipped"], num_tokens),
            "ratio_mean": _share(sums["ratio"], finite_tokens),
            **_ratio_quantiles(values[len(_SUMS) :]),
            "ess_fraction": _share(sums["weight"] ** 2, finite_tokens * sums["weight_squared"]),
            "kl_behavior": _share(sums["kl_behavior"], finite_tokens),
            "entropy": _share(sums["entropy"], finite_tokens),
            "lag": _share(sums["lag"], finite_tokens),
            "nonfinite_tokens": num_tokens - finite_tokens,
            "num_tokens": num_tokens,
        }


def rur(advantages: Sequence[float]) -> float:
    """Return the response utilization rate: responses with a non-zero advantage / responses.

    RUR of DCPO, arXiv 2509.02333. Raises AlgorithmError for no responses.
    Example: (1.5, −0.5, 0, 0) gives 0.5.
    """
    if len(advantages) == 0:
        raise AlgorithmError("the utilization of no responses is not defined: pass one advantage for each response")
    return sum(advantage != 0 for advantage in advantages) / len(advantages)


def _log_ratio(numerator: Tensor, denominator: Tensor, finite: Tensor) -> Tensor:
    return torch.where(finite, numerator - denominator, 0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def _ratio_quantiles(histogram: Tensor) -> dict[str, float]:
    cumulative = histogram.cumsum(0)
    num_tokens = float(cumulative[-1])
    if num_tokens == 0:
        return dict.fromkeys(_QUANTILES, 0.0)
    ranks = torch.tensor([share * num_tokens for share in _QUANTILES.values()], dtype=torch.float64)
    bins = torch.searchsorted(cumulative, ranks).tolist()
    return {name: math.exp((bin - _HALF_BINS) * _BIN_WIDTH) for name, bin in zip(_QUANTILES, bins, strict=True)}


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
