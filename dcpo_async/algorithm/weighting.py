"""The policy loss whose clipped ratio is a constant weight, so that every token keeps its gradient."""

import torch
from torch import Tensor

from dcpo_async.algorithm.loss import Bounds, PolicyLoss, clipped_loss


def weighted_loss(
    policy_logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    token_weights: Tensor,
    *,
    bounds: Bounds,
    max_ratio: float,
    importance_weights: Tensor | None = None,
    sequences: Tensor | None = None,
) -> PolicyLoss:
    """Return the loss of CISPO, arXiv 2506.13585, equations 4 and 5: the sum over tokens of

        −weight · A · clip(r, low, high) · log π,  where no gradient flows through clip(r, low, high).

    Where the ratio is not clipped the gradient is that of clipped_loss; where it is, the token learns by the bound
    instead of not at all, whatever the sign of A.

    Args and errors are those of clipped_loss, with ratios of tokens or sequences.

    Returns:
        clipped_high and clipped_low are the tokens whose weight a bound changed; dual_clipped is nowhere set.

    Example: A = 1, weight 1, bounds 0.8 and 1.2: at ratio 1.5 the gradient is −1.2, where clipped_loss has none.
    """
    with torch.no_grad():
        found = clipped_loss(
            policy_logprobs,
            old_logprobs,
            advantages,
            token_weights,
            bounds=bounds,
            max_ratio=max_ratio,
            importance_weights=importance_weights,
            sequences=sequences,
        )
        low, high = bounds(torch.where(found.nonfinite, 0.0, old_logprobs))
        scale = advantages * token_weights * (1.0 if importance_weights is None else importance_weights)
        scale = torch.where(found.nonfinite, 0.0, scale * found.ratio.clamp(low, high))
        learns = (advantages != 0) & ~found.nonfinite
    logprobs = torch.where(found.nonfinite, 0.0, policy_logprobs)
    return PolicyLoss(
        loss=-(scale * logprobs).sum(),
        ratio=found.ratio,
        clipped_high=learns & (found.ratio > high),
        clipped_low=learns & (found.ratio < low),
        dual_clipped=torch.zeros_like(found.dual_clipped),
        nonfinite=found.nonfinite,
    )


LOSSES = {"clipped": clipped_loss, "weighted": weighted_loss}
"""The losses by the name that a configuration has for them."""
