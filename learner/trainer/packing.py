"""Samples to micro-batches: a plan by token budget, and the right-padded tensors. Pure functions."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dcpo_async.records import TrainingSample


class MicroBatch(NamedTuple):
    """What one forward and backward pass needs; response tokens of all sequences are flat, one after another.

    Attributes:
        input_ids: int64 [sequences, length], prompt and response, zeros on the right.
        rows, columns: int64 [tokens], where the logits of each response token stand in input_ids.
        token_ids: int64 [tokens].
        behavior_logprobs, old_logprobs, advantages, token_weights: float32 [tokens].
        token_lags: int32 [tokens].
    """

    input_ids: Tensor
    rows: Tensor
    columns: Tensor
    token_ids: Tensor
    behavior_logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    token_weights: Tensor
    token_lags: Tensor

    def on(self, device: torch.device) -> "MicroBatch":
        """The same on another device."""
        return MicroBatch(*(tensor.to(device, non_blocking=True) for tensor in self))


def plan_micro_batches(samples: Sequence[TrainingSample], max_tokens: int) -> list[list[int]]:
    """Share samples among micro-batches of at most max_tokens, padding included; longest first.

    Neighbours in length share a micro-batch, so little is padding. Empty responses are left out: there is nothing to
    train. The plan depends on lengths, positions and indices alone, not on the order of the samples.

    Args:
        samples: the shard of one rank.
        max_tokens: a sample that is longer goes alone.

    Returns:
        For each micro-batch the numbers of its samples. Lengths 3, 5, 4 and max_tokens 10 give [[1, 2], [0]].
    """
    lengths = [len(sample.prompt_token_ids) + len(sample.token_ids) for sample in samples]
    order = sorted(
        (number for number, sample in enumerate(samples) if len(sample.token_ids)),
        key=lambda number: (-lengths[number], samples[number].position, samples[number].index),
    )
    plan: list[list[int]] = []
    for number in order:
        if plan and (len(plan[-1]) + 1) * lengths[plan[-1][0]] <= max_tokens:
            plan[-1].append(number)
        else:
            plan.append([number])
    return plan


def pack(samples: Sequence[TrainingSample]) -> MicroBatch:
    """Return the tensors of one micro-batch.

    No samples give one sequence without response tokens: a rank with nothing left to do still has to take
    part in every collective.
    """
    lengths = np.array([len(sample.token_ids) for sample in samples], dtype=np.int64)
    prompt_lengths = np.array([len(sample.prompt_token_ids) for sample in samples], dtype=np.int64)
    width = int((prompt_lengths + lengths).max(initial=1))
    input_ids = np.zeros((max(1, len(samples)), width), dtype=np.int64)
    for row, sample in zip(input_ids, samples, strict=False):
        row[: len(sample.prompt_token_ids)] = sample.prompt_token_ids
        row[len(sample.prompt_token_ids) :][: len(sample.token_ids)] = sample.token_ids
    starts = np.cumsum(lengths) - lengths
    within = np.arange(lengths.sum()) - np.repeat(starts, lengths)

    def by_token(name: str, dtype: type[np.generic]) -> Tensor:
        columns = [getattr(sample, name) for sample in samples]
        return torch.from_numpy(np.concatenate([np.empty(0, dtype), *columns]).astype(dtype))

    def by_sample(name: str) -> Tensor:
        values = np.array([getattr(sample, name) for sample in samples], dtype=np.float32)
        return torch.from_numpy(np.repeat(values, lengths))

    return MicroBatch(
        input_ids=torch.from_numpy(input_ids),
        rows=torch.from_numpy(np.repeat(np.arange(len(samples)), lengths)),
        columns=torch.from_numpy(np.repeat(prompt_lengths - 1, lengths) + within),
        token_ids=by_token("token_ids", np.int64),
        behavior_logprobs=by_token("behavior_logprobs", np.float32),
        old_logprobs=by_token("old_logprobs", np.float32),
        advantages=by_sample("advantage"),
        token_weights=by_sample("token_weight"),
        token_lags=by_token("token_lags", np.int32),
    )
