"""How far a token's ratio may move: dynamic adaptive bounds, given how likely the token was, and fixed ones."""

import math

import torch
from torch import Tensor

from dcpo_async.errors import AlgorithmError

# Keeps 1/q finite in float32, where 0·∞ would be NaN; at q = e⁻⁸⁰ high is far above any clamped ratio.
_LEAST_LOGPROB = -80.0


def clip_bounds(
    old_logprobs: Tensor, epsilon_low: float = 0.16, epsilon_high: float = 0.20, max_ratio: float = 10.0
) -> tuple[Tensor, Tensor]:
    """Return the lowest and highest ratio at which a token still learns.

    DCPO, arXiv 2509.02333, dynamic adaptive clipping, with q = exp(old_logprobs):
        low(q) = ½ + ½·√max(1 − 4·ε_low/q, 0),  high(q) = min(½ + ½·√(1 + 4·ε_high/q), max_ratio)

    Args:
        old_logprobs: float32 or float64, any shape; natural logarithms, −inf allowed. A NaN gives NaN bounds.
        epsilon_low, epsilon_high: finite, at least 0; 0 allows no move on that side.
        max_ratio: r_max, at least 1; the cap of high.

    Returns:
        low in [0.5, 1] and high in [1, max_ratio]: shape and dtype of old_logprobs, without gradient.

    Raises:
        AlgorithmError: a setting out of its range, or another dtype.

    Example: q = 0.9 allows ratios 0.7687 to 1.1872; q = 0.01 allows 0.5 to 5.0.
    """
    _check_settings(epsilon_low, epsilon_high, max_ratio)
    require_full_precision("old_logprobs", old_logprobs)
    inverse_q = torch.exp(-old_logprobs.detach().clamp(min=_LEAST_LOGPROB))
    low = 0.5 + 0.5 * (1 - 4 * epsilon_low * inverse_q).clamp(min=0).sqrt()
    high = (0.5 + 0.5 * (1 + 4 * epsilon_high * inverse_q).sqrt()).clamp(max=max_ratio)
    return low, high


def fixed_bounds(
    old_logprobs: Tensor, epsilon_low: float = 0.2, epsilon_high: float = 0.2, max_ratio: float = 10.0
) -> tuple[Tensor, Tensor]:
    """Return bounds that are the same for every token: 1 − ε_low and min(1 + ε_high, max_ratio).

    PPO, arXiv 1707.06347, equation 7, as GRPO (arXiv 2402.03300) uses it; with ε_high > ε_low the clip-higher of DAPO
    (arXiv 2503.14476, equation 10).

    Args, returns and errors are those of clip_bounds.

    Example: (0.2, 0.28) allows ratios 0.8 to 1.28.
    """
    _check_settings(epsilon_low, epsilon_high, max_ratio)
    require_full_precision("old_logprobs", old_logprobs)
    low = torch.full_like(old_logprobs, max(1 - epsilon_low, 0.0), requires_grad=False)
    high = torch.full_like(old_logprobs, min(1 + epsilon_high, max_ratio), requires_grad=False)
    return low, high


BOUNDS = {"dynamic": clip_bounds, "fixed": fixed_bounds}
"""The bounds by the name that a configuration has for them."""


def require_full_precision(name: str, tensor: Tensor) -> None:
    """Raise AlgorithmError unless the tensor is float32 or float64: coarser ones hide the clipped moves."""
    if tensor.dtype not in (torch.float32, torch.float64):
        raise AlgorithmError(f"{name} is {tensor.dtype}: compute log-probs in float32 or float64")


def _check_settings(epsilon_low: float, epsilon_high: float, max_ratio: float) -> None:
    for name, epsilon in (("epsilon_low", epsilon_low), ("epsilon_high", epsilon_high)):
        if not 0 <= epsilon < math.inf:
            raise AlgorithmError(f"{name} = {epsilon}: set a finite number of at least 0")
    if not max_ratio >= 1:
        raise AlgorithmError(f"max_ratio = {max_ratio}: set at least 1, the ratio of an unchanged token")
