"""Token-level metrics of a step, kept as sums so that micro-batches and ranks merge by addition."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dcpo_async.algorithm.loss import MAX_LOG_RATIO, PolicyLoss, require_flat
from dcpo_async.errors import AlgorithmError

LAST_LAG = 16
"""Tokens of this lag and of all larger ones share their sums."""

_SUMS = ("nonzero_tokens", "dual_clipped", "micro_batches", "micro_batch_tcr", "entropy", "lag")
_LAG_SUMS = ("tokens", "finite_tokens", "clipped", "ratio", "weight", "weight_squared", "kl_behavior")
# Bins are centred on multiples of the width, so that an unchanged token counts at a ratio of exactly 1.
_BIN_WIDTH = 0.005
_HALF_BINS = round(MAX_LOG_RATIO / _BIN_WIDTH)
_PARTS = (len(_SUMS), (LAST_LAG + 1) * len(_LAG_SUMS), 2 * _HALF_BINS + 1)
_SIZE = sum(_PARTS)
_QUANTILES = {"ratio_p01": 0.01, "ratio_p50": 0.5, "ratio_p99": 0.99, "ratio_max": 1.0}


@dataclass(frozen=True, slots=True, eq=False)
class TokenDiagnostics:
    """Sums over response tokens, most of them for each lag apart, and a histogram of log-ratios.

    Attributes:
        sums: float64 [size], the same size always; merged by addition or all-reduce SUM. Counts are exact where each
            token stands for itself.
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
        counts: Tensor | None = None,
    ) -> "TokenDiagnostics":
        """Return the diagnostics of one micro-batch, without gradient and without waiting for the device.

        All are flat [tokens], response tokens only: padding would count.

        Args:
            policy_logprobs, old_logprobs, behavior_logprobs: current, anchor and engine log-probs.
            advantages: the response's advantage at each of its tokens.
            policy_loss: what policy_loss returned for the same tokens.
            entropy: nats, of the current policy at each token.
            lag: optimizer steps between the weights that sampled the token and its batch; whole numbers from 0.
            counts: how many tokens each stands for, 1 unless it is one of few that were looked at; None for 1.

        Raises:
            AlgorithmError: shapes that differ or are not flat.
        """
        counts = torch.ones_like(policy_logprobs) if counts is None else counts
        ratio = policy_loss.ratio
        require_flat(policy_logprobs, old_logprobs, behavior_logprobs, advantages, ratio, entropy, lag, counts)
        policy, old, behavior, entropy, lag, counts = (
            tensor.detach().double()
            for tensor in (policy_logprobs, old_logprobs, behavior_logprobs, entropy, lag, counts)
        )
        finite = ~policy_loss.nonfinite & behavior.isfinite() & entropy.isfinite()
        log_ratio = _log_ratio(policy, old, finite)
        log_weight = _log_ratio(policy, behavior, finite)
        counted = finite * counts
        weight = log_weight.exp() * counted
        clipped = (policy_loss.clipped_high | policy_loss.clipped_low) * counts
        num_tokens = counts.sum()
        sums = {
            "nonzero_tokens": ((advantages.detach() != 0) * counts).sum(),
            "dual_clipped": (policy_loss.dual_clipped * counts).sum(),
            "micro_batches": num_tokens / max(1, policy.numel()),
            "micro_batch_tcr": clipped.sum() / max(1, policy.numel()),
            "entropy": (torch.where(finite, entropy, 0.0) * counts).sum(),
            "lag": (lag * counted).sum(),
        }
        lag_sums = {
            "tokens": counts,
            "finite_tokens": counted,
            "clipped": clipped,
            "ratio": log_ratio.exp() * counted,
            "weight": weight,
            "weight_squared": weight * log_weight.exp(),
            "kl_behavior": (log_weight.expm1() - log_weight) * counted,
        }
        by_lag = counted.new_zeros(LAST_LAG + 1, len(_LAG_SUMS))
        by_lag.index_add_(0, lag.clamp(0, LAST_LAG).long(), torch.stack([lag_sums[name] for name in _LAG_SUMS], dim=1))
        histogram = counted.new_zeros(2 * _HALF_BINS + 1)
        histogram.index_add_(0, (log_ratio / _BIN_WIDTH).round().long() + _HALF_BINS, counted)
        return cls(torch.cat([torch.stack([sums[name].double() for name in _SUMS]), by_lag.flatten(), histogram]))

    def __add__(self, other: "TokenDiagnostics") -> "TokenDiagnostics":
        return TokenDiagnostics(self.sums + other.sums)

    def summary(self) -> dict[str, float]:
        """Return the metrics of all tokens merged so far; a share or mean of no tokens is 0.

        Tokens without a gradient, of advantage 0, are among them all, by those that were looked at.

        tcr: tokens whose loss the clip bound changed, dual clip apart / all tokens (arXiv 2509.02333).
        tcr_nonzero: the same / tokens with a non-zero advantage.
        tcr_micro_batch_mean: mean of the micro-batches' own tcr, as the paper has it; depends on the layout.
        dual_clip_rate: tokens held at max_ratio / all tokens.
        ratio_mean, ratio_p01, ratio_p50, ratio_p99, ratio_max: current/old; the last four to within 0.25 %.
        ess_fraction: (Σw)² / (n·Σw²) of w = current/behavior; 1 if on-policy, 1/n if one token outweighs all.
        kl_behavior: nats, mean of w − 1 − log w, an estimate of KL(behavior ‖ current).
        entropy: nats, mean.  lag: optimizer steps, mean.
        nonfinite_tokens: with a log-prob or entropy that is not finite; in no mean above.  num_tokens: all.

        And for each lag K that has tokens, over these alone, 16 and more together as lag_16_up:
        lag_K/tokens_share: its tokens / all tokens.
        lag_K/tcr, lag_K/ratio_mean, lag_K/ess_fraction, lag_K/kl_behavior: as above.
        At lag 0, before the first update on a batch, the weights that train are those that sampled. What kl_behavior
        has there beyond rounding is no lag: engine and learner disagree, or a KV cache kept from older weights does.
        """
        overall, by_lag, histogram = self.sums.detach().cpu().split(_PARTS)
        sums = dict(zip(_SUMS, overall.tolist(), strict=True))
        rows = by_lag.view(LAST_LAG + 1, len(_LAG_SUMS))
        totals = dict(zip(_LAG_SUMS, rows.sum(0).tolist(), strict=True))
        num_tokens, finite_tokens = totals["tokens"], totals["finite_tokens"]
        return {
            **_means(totals),
            "tcr_nonzero": _share(totals["clipped"], sums["nonzero_tokens"]),
            "tcr_micro_batch_mean": _share(sums["micro_batch_tcr"], sums["micro_batches"]),
            "dual_clip_rate": _share(sums["dual_clipped"], num_tokens),
            **_ratio_quantiles(histogram),
            "entropy": _share(sums["entropy"], finite_tokens),
            "lag": _share(sums["lag"], finite_tokens),
            "nonfinite_tokens": num_tokens - finite_tokens,
            "num_tokens": num_tokens,
            **_lag_metrics(rows, num_tokens),
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


def _means(sums: Mapping[str, float]) -> dict[str, float]:
    finite_tokens = sums["finite_tokens"]
    return {
        "tcr": _share(sums["clipped"], sums["tokens"]),
        "ratio_mean": _share(sums["ratio"], finite_tokens),
        "ess_fraction": _share(sums["weight"] ** 2, finite_tokens * sums["weight_squared"]),
        "kl_behavior": _share(sums["kl_behavior"], finite_tokens),
    }


def _lag_metrics(rows: Tensor, num_tokens: float) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for lag, row in enumerate(rows.tolist()):
        sums = dict(zip(_LAG_SUMS, row, strict=True))
        if sums["tokens"]:
            means = {"tokens_share": sums["tokens"] / num_tokens, **_means(sums)}
            group = f"lag_{lag}" if lag < LAST_LAG else f"lag_{lag}_up"
            metrics |= {f"{group}/{name}": value for name, value in means.items()}
    return metrics


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
