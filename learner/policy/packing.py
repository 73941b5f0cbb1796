"""Samples to micro-batches: a plan by token budget, and the tensors, one sequence after another. Pure functions."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dcpo_async.records import TrainingSample


class MicroBatch(NamedTuple):
    """What one forward and backward pass needs: sequences of prompt and response in one row, without padding.

    Attributes:
        input_ids, position_ids: int64 [1, length], positions from 0 in each sequence.
        bounds: int32 [sequences + 1], where in the row each sequence begins, and the end.
        longest: int64 [], on the CPU, tokens of the longest sequence.
        states: int64 [tokens], where in the row the state stands that predicts each response token: one before it.
        sequences: int64 [tokens], the sequence of each response token.
        token_ids: int64 [tokens].
        behavior_logprobs, old_logprobs, advantages, token_weights, token_counts: float32 [tokens].
        token_lags: int32 [tokens].
    """

    input_ids: Tensor
    position_ids: Tensor
    bounds: Tensor
    longest: Tensor
    states: Tensor
    sequences: Tensor
    token_ids: Tensor
    behavior_logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    token_weights: Tensor
    token_counts: Tensor
    token_lags: Tensor

    def on(self, device: torch.device) -> "MicroBatch":
        """The same on another device, but for `longest`, which kernels are launched with."""
        return MicroBatch(*(tensor.to(device, non_blocking=True) for tensor in self))._replace(longest=self.longest)


def micro_batch_tokens(setting: int | Literal["auto"], device: str) -> int:
    """Tokens of a forward pass on a device of this type, as `training.micro_batch_tokens` says."""
    if setting != "auto":
        return setting
    # A CPU is as fast with 1,024 as with more, at less memory.
    return 1024 if device == "cpu" else 16384


def plan_micro_batches(samples: Sequence[TrainingSample], max_tokens: int, *, one_by_one: bool) -> list[list[int]]:
    """Share samples among micro-batches of at most max_tokens; longest first, each into the first that has room.

    Empty responses are left out: there is nothing to train. The plan depends on lengths, positions and indices alone,
    not on the order of the samples.

    Args:
        samples: the shard of one rank.
        max_tokens: prompt and response tokens; a sample that is longer goes alone.
        one_by_one: for models that cannot keep the sequences of a row apart.

    Returns:
        For each micro-batch the numbers of its samples. Lengths 3, 5, 4 and max_tokens 8 give [[1, 0], [2]].
    """
    lengths = [len(sample.prompt_token_ids) + len(sample.token_ids) for sample in samples]
    order = sorted(
        (number for number, sample in enumerate(samples) if len(sample.token_ids)),
        key=lambda number: (-lengths[number], samples[number].position, samples[number].index),
    )
    if one_by_one:
        return [[number] for number in order]
    plan: list[list[int]] = []
    room: list[int] = []
    for number in order:
        chosen = next((i for i, left in enumerate(room) if lengths[number] <= left), None)
        if chosen is None:
            plan.append([number])
            room.append(max_tokens - lengths[number])
        else:
            plan[chosen].append(number)
            room[chosen] -= lengths[number]
    return plan


def pack(samples: Sequence[TrainingSample]) -> MicroBatch:
    """Return the tensors of one micro-batch.

    No samples give one sequence of one token without a response: a rank with nothing left to do still has to take
    part in every collective.
    """
    rows = [np.concatenate([sample.prompt_token_ids, sample.token_ids]) for sample in samples] or [np.zeros(1)]
    sizes = np.array([len(row) for row in rows])
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    lengths = np.array([len(sample.token_ids) for sample in samples], dtype=np.int64)
    # The last state of a sequence predicts nothing; those before it predict the response, the last of all tokens.
    ends = bounds[1 : len(samples) + 1] - 1
    states = np.repeat(ends - np.cumsum(lengths), lengths) + np.arange(lengths.sum())

    def by_token(name: str, dtype: type[np.generic]) -> Tensor:
        columns = [getattr(sample, name) for sample in samples]
        return torch.from_numpy(np.concatenate([np.empty(0, dtype), *columns]).astype(dtype))

    def by_sample(name: str) -> Tensor:
        values = np.array([getattr(sample, name) for sample in samples], dtype=np.float32)
        return torch.from_numpy(np.repeat(values, lengths))

    return MicroBatch(
        input_ids=torch.from_numpy(np.concatenate(rows).astype(np.int64))[None],
        position_ids=torch.from_numpy(np.concatenate([np.arange(size) for size in sizes]))[None],
        bounds=torch.from_numpy(bounds.astype(np.int32)),
        longest=torch.tensor(int(sizes.max())),
        states=torch.from_numpy(states),
        sequences=torch.from_numpy(np.repeat(np.arange(len(samples)), lengths)),
        token_ids=by_token("token_ids", np.int64),
        behavior_logprobs=by_token("behavior_logprobs", np.float32),
        old_logprobs=by_token("old_logprobs", np.float32),
        advantages=by_sample("advantage"),
        token_weights=by_sample("token_weight"),
        token_counts=by_sample("token_count"),
        token_lags=by_token("token_lags", np.int32),
    )


def pack_sequences(sequences: Sequence[Sequence[int]]) -> MicroBatch:
    """Return the tensors that score each token of a sequence given those before it, from the second on."""
    samples = []
    for number, sequence in enumerate(sequences):
        token_ids = np.asarray(sequence, dtype=np.int32)
        nothing = np.zeros(len(token_ids) - 1, dtype=np.float32)
        samples.append(
            TrainingSample(
                position=0,
                index=number,
                prompt_token_ids=token_ids[:1],
                token_ids=token_ids[1:],
                behavior_logprobs=nothing,
                old_logprobs=nothing,
                token_lags=nothing.astype(np.int32),
                advantage=0.0,
                token_weight=0.0,
            )
        )
    return pack(samples)
