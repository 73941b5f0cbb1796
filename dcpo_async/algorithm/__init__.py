"""The mathematics of DCPO (arXiv 2509.02333) and its rivals: pure functions of plain numbers and flat tensors."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dcpo_async.algorithm.advantages import fading_advantages, smooth_advantages
from dcpo_async.algorithm.group_advantages import (
    ADVANTAGES,
    centered_advantages,
    group_advantages,
    leave_one_out_advantages,
)
from dcpo_async.algorithm.reward_stats import RewardStats
from dcpo_async.algorithm.token_weights import constant_weights, only_token_mean_weights, token_mean_weights

if TYPE_CHECKING:
    from dcpo_async.algorithm.clipping import BOUNDS, clip_bounds, fixed_bounds
    from dcpo_async.algorithm.corrections import masked_weights, truncated_weights
    from dcpo_async.algorithm.diagnostics import TokenDiagnostics, rur
    from dcpo_async.algorithm.loss import PolicyLoss, clipped_loss, policy_loss
    from dcpo_async.algorithm.penalties import overlong_penalty, reference_kl
    from dcpo_async.algorithm.weighting import LOSSES, weighted_loss

__all__ = [
    "ADVANTAGES",
    "BOUNDS",
    "LOSSES",
    "PolicyLoss",
    "RewardStats",
    "TokenDiagnostics",
    "centered_advantages",
    "clip_bounds",
    "clipped_loss",
    "constant_weights",
    "fading_advantages",
    "fixed_bounds",
    "group_advantages",
    "leave_one_out_advantages",
    "masked_weights",
    "only_token_mean_weights",
    "overlong_penalty",
    "policy_loss",
    "reference_kl",
    "rur",
    "smooth_advantages",
    "token_mean_weights",
    "truncated_weights",
    "weighted_loss",
]

_OF_TENSORS = {
    "BOUNDS": "clipping",
    "clip_bounds": "clipping",
    "fixed_bounds": "clipping",
    "masked_weights": "corrections",
    "truncated_weights": "corrections",
    "TokenDiagnostics": "diagnostics",
    "rur": "diagnostics",
    "PolicyLoss": "loss",
    "clipped_loss": "loss",
    "policy_loss": "loss",
    "overlong_penalty": "penalties",
    "reference_kl": "penalties",
    "LOSSES": "weighting",
    "weighted_loss": "weighting",
}
"""Names whose modules import torch, which takes seconds that readers of a ledger do without. None has its name."""


def __getattr__(name: str) -> Any:
    if name in _OF_TENSORS:
        return getattr(import_module(f"{__name__}.{_OF_TENSORS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
