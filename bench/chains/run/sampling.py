"""Responses of a small model on one core: prompts of a length side by side, each computed once for its whole group."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache


@dataclass(frozen=True, slots=True)
class Sampled:
    """One response as it was sampled.

    Attributes:
        token_ids: int32 [tokens], the end token included.
        logprobs: float32 [tokens], under the distribution that was sampled from.
        entropy: nats, mean over its tokens.
        is_cut: it reached the longest length without an end token.
    """

    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    entropy: float
    is_cut: bool


@torch.no_grad()
def sampled_groups(
    model: Any,
    prompts: Sequence[Sequence[int]],
    group_size: int,
    *,
    max_tokens: int,
    end_id: int,
    generator: torch.Generator,
) -> list[list[Sampled]]:
    """Sample a group of responses to each prompt, at temperature 1.

    Args:
        model: causal language model of transformers, float32, on the CPU.
        prompts: token ids; at least one token each.
        generator: the same state gives the same responses to the same prompts, with one thread.

    Returns a group for each prompt, in their order.
    """
    found: list[list[Sampled]] = [[] for _ in prompts]
    for length in sorted({len(prompt) for prompt in prompts}):
        chosen = [number for number, prompt in enumerate(prompts) if len(prompt) == length]
        rows = torch.tensor([prompts[number] for number in chosen])
        responses = _sampled(model, rows, group_size, max_tokens, end_id, generator)
        for place, number in enumerate(chosen):
            found[number] = responses[place * group_size : (place + 1) * group_size]
    return found


def _sampled(
    model: Any, rows: Tensor, group_size: int, max_tokens: int, end_id: int, generator: torch.Generator
) -> list[Sampled]:
    """Responses to prompts of one length, [prompts, length]: a group of the first prompt, then one of the second, …"""
    cache = DynamicCache(config=model.config)
    logits = model(input_ids=rows, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
    cache.batch_repeat_interleave(group_size)
    logits = logits.repeat_interleave(group_size, 0)
    num_rows, alive = len(logits), torch.arange(len(logits))
    tokens = torch.full((num_rows, max_tokens), end_id)
    logprobs, entropies = torch.zeros(num_rows, max_tokens), torch.zeros(num_rows, max_tokens)
    lengths = torch.full((num_rows,), max_tokens)
    for place in range(max_tokens):
        scores = logits.log_softmax(-1)
        chances = scores.exp()
        drawn = torch.multinomial(chances, 1, generator=generator)
        tokens[alive, place] = drawn[:, 0]
        logprobs[alive, place] = scores.gather(1, drawn)[:, 0]
        entropies[alive, place] = -(chances * scores).sum(-1)
        goes_on = drawn[:, 0] != end_id
        lengths[alive[~goes_on]] = place + 1
        if place + 1 == max_tokens or not goes_on.any():
            break
        if not goes_on.all():
            kept = goes_on.nonzero()[:, 0]
            cache.batch_select_indices(kept)
            alive, drawn = alive[kept], drawn[kept]
        logits = model(input_ids=drawn, past_key_values=cache, use_cache=True).logits[:, -1]
    is_cut = tokens.gather(1, lengths[:, None] - 1)[:, 0] != end_id
    means = entropies.sum(1) / lengths
    all_tokens, all_logprobs = tokens.numpy().astype(np.int32), logprobs.numpy()
    columns = zip(lengths.tolist(), means.tolist(), is_cut.tolist(), strict=True)
    return [
        Sampled(all_tokens[row, :length], all_logprobs[row, :length], entropy, cut)
        for row, (length, entropy, cut) in enumerate(columns)
    ]


def reader_of(tokenizer: Any) -> Callable[[NDArray[np.int32]], str]:
    """What turns the tokens of a response into its text; it remembers responses that come again."""
    known: dict[bytes, str] = {}

    def text(token_ids: NDArray[np.int32]) -> str:
        key = token_ids.tobytes()
        if key not in known:
            known[key] = tokenizer.decode(token_ids.tolist(), skip_special_tokens=True)
        return known[key]

    return text
