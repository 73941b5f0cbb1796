"""A clip that is dynamic on one side alone, which no setting names."""

from torch import Tensor

from dcpo_async.algorithm import clip_bounds, fixed_bounds
from dcpo_async.algorithm.loss import Bounds
from dcpo_async.config import AlgorithmSettings

FIXED_EPSILON = 0.2
"""GRPO's, of the other side."""


def one_sided(sides: str, algorithm: AlgorithmSettings) -> Bounds | None:
    """The bounds of a clip that is dynamic on one side alone; None for both, as the settings say."""
    if sides == "both":
        return None
    low_of, high_of = (fixed, dynamic) if sides == "upper" else (dynamic, fixed)
    return lambda old: (low_of(old, algorithm)[0], high_of(old, algorithm)[1])


def dynamic(old_logprobs: Tensor, algorithm: AlgorithmSettings) -> tuple[Tensor, Tensor]:
    """DCPO's bounds."""
    return clip_bounds(old_logprobs, algorithm.epsilon_low, algorithm.epsilon_high, algorithm.max_ratio)


def fixed(old_logprobs: Tensor, algorithm: AlgorithmSettings) -> tuple[Tensor, Tensor]:
    """GRPO's bounds."""
    return fixed_bounds(old_logprobs, FIXED_EPSILON, FIXED_EPSILON, algorithm.max_ratio)
