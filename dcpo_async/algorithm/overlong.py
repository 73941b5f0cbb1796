"""Soft punishment of responses that come near the length limit."""

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
