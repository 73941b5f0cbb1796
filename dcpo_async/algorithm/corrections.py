"""Corrections for responses that another policy sampled than the one on which ratio and clip bounds are anchored.

Both take w = π_old/π_behavior of each token and multiply its loss; denominators of the loss stay those of the batch.
"""

from torch import Tensor

from dcpo_async.algorithm.loss import MAX_LOG_RATIO


def truncated_weights(old_logprobs: Tensor, behavior_logprobs: Tensor, cap: float = 2.0) -> Tensor:
    """Return min(w, cap) for each token: truncated importance sampling (TIS), published with C = 2.

    Args:
        old_logprobs, behavior_logprobs: [tokens].
        cap: C, above 0.

    Example: π_old 0.6, π_behavior 0.2 and cap 2 give 2; π_old 0.1 gives 0.5.
    """
    return _importance(old_logprobs, behavior_logprobs).clamp(max=cap)


def masked_weights(
    old_logprobs: Tensor, behavior_logprobs: Tensor, lowest: float = 0.5, highest: float = 5.0
) -> Tensor:
    """Return w for each token, 0 where it lies outside [lowest, highest]: IcePop, arXiv 2510.18855, with 0.5 and 5.

    Args:
        old_logprobs, behavior_logprobs: [tokens].
        lowest, highest: bounds of w, both of them inside.

    Example: π_old 0.6, π_behavior 0.2 give 3; π_old 0.08 gives 0, since 0.4 is below 0.5.
    """
    weights = _importance(old_logprobs, behavior_logprobs)
    return weights.where((weights >= lowest) & (weights <= highest), 0.0)


def _importance(old_logprobs: Tensor, behavior_logprobs: Tensor) -> Tensor:
    return (old_logprobs - behavior_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
