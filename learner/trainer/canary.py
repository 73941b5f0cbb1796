"""The trainer's side of a canary: the sequence of a run, and what the model says of it."""

import math

import numpy as np

from dcpo_async.errors import TrainerError
from dcpo_async.weights.canary import Canary, canary_bound
from learner.trainer.engine import TrainEngine


def canary_tokens(vocab_size: int, num_tokens: int, seed: int) -> tuple[int, ...]:
    """The token sequence of a run: uniform over the vocabulary, so that it looks into many rows of embedding and head.

    Args:
        vocab_size: ids that both tokenizer and embedding have, the smaller of the two.
        num_tokens: `weights.canary_tokens`.
        seed: of the run.

    Returns:
        Ids in [0, vocab_size), the same for the same arguments: (11, 7, 8, 10) begin those of (12, 64, 7).
    """
    return tuple(np.random.default_rng(seed).integers(0, vocab_size, num_tokens).tolist())


def canary_logprobs(engine: TrainEngine, token_ids: tuple[int, ...]) -> tuple[float, ...]:
    """Log-probs of each token given all before it, from the second on, under today's weights; all ranks call it.

    The forward pass is in the trainer's type, log-probs are float32 at temperature 1; gradients, modes and random state
    are as before. Raises TrainerError where one is not a finite number.
    """
    logprobs = engine.score(token_ids).tolist()
    if not all(map(math.isfinite, logprobs)):
        raise TrainerError("the model's log-probs of the canary are not finite: its weights are no longer a model's")
    # Rounding may leave a probability a hair above 1.
    return tuple(min(0.0, logprob) for logprob in logprobs)


def canary_of(engine: TrainEngine, token_ids: tuple[int, ...], bound: float | None) -> Canary:
    """The canary of today's weights; all ranks call it.

    Args:
        bound: `weights.canary_bound`.
    """
    dtype = str(engine.dtype).removeprefix("torch.")
    logprobs = canary_logprobs(engine, token_ids)
    return Canary(token_ids=token_ids, logprobs=logprobs, bound=canary_bound(bound, dtype))
