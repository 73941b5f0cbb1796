"""The clipped policy loss, summed over weighted tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dcpo_async.algorithm.clipping import clip_bounds, require_full_precision
from dcpo_async.errors import AlgorithmError

MAX_LOG_RATIO = 20.0


@dataclass(frozen=True, slots=True, eq=False)
class PolicyLoss:
    """What policy_loss computed; all but loss are [tokens] and carry no gradient.

    Attributes:
        loss: scalar, the weighted sum over tokens.
        ratio: current/old probability; 1 where nonfinite.
        clipped_high: bool, advantage > 0 and ratio above its bound.
        clipped_low: bool, advantage < 0 and ratio below its bound.
        dual_clipped: bool, advantage < 0 and ratio above max_ratio.
        nonfinite: bool, some input was not finite: no loss and no gradient.
    """

    loss: Tensor
    ratio: Tensor
    clipped_high: Tensor
    clipped_low: Tensor
    dual_clipped: Tensor
    nonfinite: Tensor


def policy_loss(
    policy_logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    token_weights: Tensor,
    *,
    epsilon_low: float,
    epsilon_high: float,
    max_ratio: float,
    importance_weights: Tensor | None = None,
) -> PolicyLoss:
    """Return the DCPO loss of any set of tokens; the losses of a batch's parts add up to the batch's own.

    DCPO, arXiv 2509.02333, with the bounds of clip_bounds and the dual clip of arXiv 1912.09729: the sum of
        weight · max(−A·r, −A·clip(r, low, high)), capped at weight · (−A)·max_ratio where A < 0.
    The weights come from the assembled batch, so the gradient is the same in any micro-batches and order.
    A token with a non-finite input has no part in it.

    Args:
        policy_logprobs: [tokens], float32 or float64; the only argument that receives a gradient.
        old_logprobs: [tokens]; what ratio and bounds are anchored on.
        advantages: [tokens], A, the response's advantage at each of its tokens.
        token_weights: [tokens], see only_token_mean_weights; 0 for padding.
        epsilon_low, epsilon_high, max_ratio: as in clip_bounds.
        importance_weights: [tokens], a constant factor for each token; None for 1.

    Raises:
        AlgorithmError: shapes that differ or are not flat, a dtype or setting that clip_bounds refuses.

    Example: q = 0.9, weight 1. A = 1 at ratio 1.1 costs −1.1; at 1.5 it costs −1.1872 and has no gradient.
    """
    constants = [old_logprobs, advantages, token_weights]
    if importance_weights is not None:
        constants.append(importance_weights)
    require_flat(policy_logprobs, *constants)
    require_full_precision("policy_logprobs", policy_logprobs)
    old_logprobs, advantages, token_weights = (t.detach() for t in (old_logprobs, advantages, token_weights))

    scale = advantages * token_weights
    if importance_weights is not None:
        scale = scale * importance_weights.detach()
    finite = policy_logprobs.detach().isfinite() & old_logprobs.isfinite() & scale.isfinite()
    # Before any arithmetic: the gradient of a NaN that is masked afterwards is 0·NaN.
    policy_logprobs = torch.where(finite, policy_logprobs, 0.0)
    old_logprobs = torch.where(finite, old_logprobs, 0.0)
    scale = torch.where(finite, scale, 0.0)

    low, high = clip_bounds(old_logprobs, epsilon_low, epsilon_high, max_ratio)
    ratio = (policy_logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    clipped_high = (advantages > 0) & (ratio > high)
    clipped_low = (advantages < 0) & (ratio < low)
    dual_clipped = (advantages < 0) & (ratio > max_ratio)
    # Selecting, not min and max: those share the gradient at a tie.
    bounded = torch.where(clipped_high, high, torch.where(clipped_low, low, ratio))
    bounded = torch.where(dual_clipped, max_ratio, bounded)
    return PolicyLoss(
        loss=-(scale * bounded).sum(),
        ratio=ratio.detach(),
        clipped_high=clipped_high,
        clipped_low=clipped_low,
        dual_clipped=dual_clipped,
        nonfinite=~finite,
    )


def require_flat(*tensors: Tensor) -> None:
    """Raise AlgorithmError unless all are [tokens] of one length: broadcasting would mix tokens."""
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if any(len(shape) != 1 or shape != shapes[0] for shape in shapes):
        raise AlgorithmError(f"tensors of shapes {shapes}: all must be flat [tokens] of one length")
