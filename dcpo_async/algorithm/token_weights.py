"""The weight of each token in the loss of its batch."""

from collections.abc import Sequence
from typing import Literal

from dcpo_async.errors import AlgorithmError


def only_token_mean_weights(
    lengths: Sequence[int], group_size: int, num_groups: int, scale: Literal["mean", "sum"] = "mean"
) -> list[float]:
    """Return, for each response, the weight of each of its tokens in the only-token-mean loss.

    DCPO, arXiv 2509.02333: a response contributes the mean over its own tokens, and a group the mean over its
    responses ("mean", weight 1/(|o|·G·B)) or, as the paper writes it, their sum ("sum", weight 1/(|o|·B)).

    Args:
        lengths: |o|, tokens of each response; any share of the batch. A response of length 0 weighs 0.
        group_size: G, responses of a group.
        num_groups: B, groups of the whole optimizer step, not of this share.
        scale: "mean" or "sum".

    Raises:
        AlgorithmError: a negative length, G or B below 1, or another scale.

    Example: lengths (2, 5) with G = 2, B = 1 weigh (0.25, 0.1) as mean and (0.5, 0.2) as sum.
    """
    if group_size < 1 or num_groups < 1:
        raise AlgorithmError(f"group_size {group_size} and num_groups {num_groups}: both must be at least 1")
    if scale not in ("mean", "sum"):
        raise AlgorithmError(f"scale {scale!r}: use 'mean' or 'sum'")
    if any(length < 0 for length in lengths):
        raise AlgorithmError(f"lengths {list(lengths)}: a response cannot have fewer than 0 tokens")
    denominator = num_groups * (group_size if scale == "mean" else 1)
    return [1 / (length * denominator) if length else 0.0 for length in lengths]


def token_mean_weights(lengths: Sequence[int]) -> list[float]:
    """Return, for each response, the weight of each of its tokens in the token-mean loss: 1 / all tokens of the step.

    DAPO, arXiv 2503.14476, equation 8, over the batch instead of each group, as its released code has it: long
    responses weigh more.

    Args:
        lengths: |o|, tokens of each response of the whole optimizer step.

    Raises:
        AlgorithmError: a negative length.

    Example: lengths (2, 6) weigh (0.125, 0.125).
    """
    if any(length < 0 for length in lengths):
        raise AlgorithmError(f"lengths {list(lengths)}: a response cannot have fewer than 0 tokens")
    total = sum(lengths)
    return [1 / total if length else 0.0 for length in lengths]


def constant_weights(lengths: Sequence[int], group_size: int, num_groups: int, max_tokens: int) -> list[float]:
    """Return, for each response, the weight of each of its tokens where all are divided by one constant: 1/(L·G·B).

    Dr. GRPO, arXiv 2503.20783, with L the longest response that the run allows: neither a response's own length nor
    that of others changes what a token weighs.

    Args:
        lengths, group_size, num_groups: as in only_token_mean_weights.
        max_tokens: L, above 0.

    Raises:
        AlgorithmError: as only_token_mean_weights, or max_tokens below 1.

    Example: lengths (2, 5) with G = 2, B = 1, L = 10 weigh (0.05, 0.05).
    """
    if max_tokens < 1:
        raise AlgorithmError(f"max_tokens {max_tokens}: it must be at least 1")
    means = only_token_mean_weights(lengths, group_size, num_groups)
    return [mean * length / max_tokens for mean, length in zip(means, lengths, strict=True)]
