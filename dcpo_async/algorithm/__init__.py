"""The mathematics of DCPO (arXiv 2509.02333) and its rivals: pure functions of plain numbers and flat tensors."""

from dcpo_async.algorithm.advantages import ADVANTAGES, fading_advantages, group_advantages, smooth_advantages
from dcpo_async.algorithm.clipping import BOUNDS, clip_bounds, fixed_bounds
from dcpo_async.algorithm.corrections import masked_weights, truncated_weights
from dcpo_async.algorithm.diagnostics import TokenDiagnostics, rur
from dcpo_async.algorithm.loss import PolicyLoss, clipped_loss, policy_loss
from dcpo_async.algorithm.overlong import overlong_penalty
from dcpo_async.algorithm.reward_stats import RewardStats
from dcpo_async.algorithm.token_weights import only_token_mean_weights, token_mean_weights

__all__ = [
    "ADVANTAGES",
    "BOUNDS",
    "PolicyLoss",
    "RewardStats",
    "TokenDiagnostics",
    "clip_bounds",
    "clipped_loss",
    "fading_advantages",
    "fixed_bounds",
    "group_advantages",
    "masked_weights",
    "only_token_mean_weights",
    "overlong_penalty",
    "policy_loss",
    "rur",
    "smooth_advantages",
    "token_mean_weights",
    "truncated_weights",
]
