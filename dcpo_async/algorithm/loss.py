"""The clipped policy loss, summed over weighted tokens."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dcpo_async.algorithm.clipping import clip_bounds, require_full_precision
from dcpo_async.errors import AlgorithmError

Bounds = Callable[[Tensor], tuple[Tensor, Tensor]]

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
        penalties: of each term that was added to the loss, its value at each token.
    """

    loss: Tensor
    ratio: Tensor
    clipped_high: Tensor
    clipped_low: Tensor
    dual_clipped: Tensor
    nonfinite: Tensor
    penalties: tuple[Tensor, ...] = ()


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
    return clipped_loss(
        policy_logprobs,
        old_logprobs,
        advantages,
        token_weights,
        bounds=lambda old: clip_bounds(old, epsilon_low, epsilon_high, max_ratio),
        max_ratio=max_ratio,
        importance_weights=importance_weights,
    )


def clipped_loss(
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
    """Return the loss of policy_loss with any bounds, and with ratios of tokens or of whole sequences.

    With `sequences`, the ratio of every token is that of its response, GSPO, arXiv 2507.18071, equation 7:
        s = exp(mean over the response's tokens of log r)
    and its gradient reaches all of them. The tokens of a response must then stand in one call.

    Args:
        policy_logprobs, old_logprobs, advantages, token_weights, importance_weights: as in policy_loss.
        bounds: from old log-probs [tokens] to the lowest and highest ratio [tokens].
        max_ratio: the dual clip's bound.
        sequences: int64 [tokens], number of the response that each token belongs to; None for ratios of tokens.

    Raises:
        AlgorithmError: as policy_loss.
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

    low, high = bounds(old_logprobs)
    log_ratios = policy_logprobs - old_logprobs
    if sequences is not None:
        require_flat(policy_logprobs, sequences)
        log_ratios = sequence_means(log_ratios, sequences, finite)
    ratio = log_ratios.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
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


def sequence_means(values: Tensor, sequences: Tensor, counted: Tensor) -> Tensor:
    """Return at each token the mean over its sequence's counted tokens, 0 where none counts.

    Args:
        values: [tokens]; the gradient goes through.
        sequences: int64 [tokens], at least 0.
        counted: bool [tokens].

    Example: values (1, 3, 5) of the sequences (0, 0, 1), all counted, give (2, 2, 5).
    """
    num_sequences = int(sequences.max()) + 1 if len(sequences) else 0
    sums = values.new_zeros(num_sequences).index_add(0, sequences, torch.where(counted, values, 0.0))
    counts = values.new_zeros(num_sequences).index_add(0, sequences, counted.to(values.dtype))
    return (sums / counts.clamp(min=1))[sequences]


def require_flat(*tensors: Tensor) -> None:
    """Raise AlgorithmError unless all are [tokens] of one length: broadcasting would mix tokens."""
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if any(len(shape) != 1 or shape != shapes[0] for shape in shapes):
        raise AlgorithmError(f"tensors of shapes {shapes}: all must be flat [tokens] of one length")
