"""Penalties: what responses near the length limit lose of their reward, and what distance from a reference costs."""

import torch
from torch import Tensor

from dcpo_async.algorithm.clipping import require_full_precision
from dcpo_async.algorithm.loss import MAX_LOG_RATIO, require_flat
from dcpo_async.errors import AlgorithmError


def overlong_penalty(length: int, max_tokens: int, buffer_tokens: int) -> float:
    """Return what a response loses of its reward: nothing before the last `buffer_tokens`, 1 at the limit.

    DAPO, arXiv 2503.14476, equation 13, as a cost.

    Args:
        length: tokens of the response.
        max_tokens: the length at which a response is truncated.
        buffer_tokens: over which the penalty rises; 0 for none at all.

    Raises:
        AlgorithmError: a length outside [0, max_tokens], or a buffer outside it.

    Example: with a limit of 100 and a buffer of 20, 80 tokens cost 0, 90 cost 0.5 and 100 cost 1.
    """
    if not 0 <= length <= max_tokens or not 0 <= buffer_tokens <= max_tokens:
        raise AlgorithmError(f"length {length} and buffer {buffer_tokens}: both must be 0 to {max_tokens}")
    if buffer_tokens == 0:
        return 0.0
    return max(length - (max_tokens - buffer_tokens), 0) / buffer_tokens


def reference_kl(policy_logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Return at each token an estimate of KL(policy ‖ reference), in nats, never negative.

    DeepSeekMath, arXiv 2402.03300, equation 4 (the estimator k3), with u = π_reference/π_policy:
        u − log u − 1,  whose derivative by log π_policy is 1 − u.
    Log-ratios are held within ±20; a token with an input that is not finite has the value 0 and no gradient.

    Args:
        policy_logprobs: [tokens], float32 or float64; the only argument that receives a gradient.
        reference_logprobs: [tokens].

    Raises:
        AlgorithmError: shapes that differ or are not flat, a dtype of less than float32.

    Example: π = 0.5 against 0.25 gives 0.5 − log 0.5 − 1 = 0.1931, with the derivative 0.5.
    """
    require_flat(policy_logprobs, reference_logprobs)
    require_full_precision("policy_logprobs", policy_logprobs)
    reference_logprobs = reference_logprobs.detach()
    finite = policy_logprobs.detach().isfinite() & reference_logprobs.isfinite()
    # Before any arithmetic: the gradient of a NaN that is masked afterwards is 0·NaN.
    difference = torch.where(finite, reference_logprobs, 0.0) - torch.where(finite, policy_logprobs, 0.0)
    difference = difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return difference.expm1() - difference
