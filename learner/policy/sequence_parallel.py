"""Sequence parallelism: ranks of a group share the tokens of a row, and in attention its heads.

Ulysses, arXiv 2309.14509: everything but attention looks at one token at a time. Before attention each rank gives away
most heads of its tokens for the tokens of its heads, and back after it.
"""

import math
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from learner.policy.packing import MicroBatch


class RowPart(NamedTuple):
    """What one rank of a group computes of a row.

    Attributes:
        input_ids, position_ids: int64 [1, length / ranks], the rank's tokens.
        bounds: int32 [sequences + 1], of the whole row, which may have a filler at its end: attention sees all of it.
        longest: tokens of its longest sequence.
        states: int64 [own tokens], where among the rank's tokens a state stands that predicts a response token, whose
            own place may be in the next part.
        tokens: which of the row's response tokens these are.
    """

    input_ids: Tensor
    position_ids: Tensor
    bounds: Tensor
    longest: int
    states: Tensor
    tokens: slice


def row_of(batch: MicroBatch) -> RowPart:
    """A row that is computed by one rank."""
    whole = slice(0, len(batch.token_ids))
    return RowPart(batch.input_ids, batch.position_ids, batch.bounds, int(batch.longest), batch.states, whole)


def within(own: slice, chunk: slice) -> slice:
    """Which of the row's response tokens a chunk of a rank's own are: (3, 9) and (1, 2) give (4, 5)."""
    return slice(own.start + chunk.start, own.start + chunk.stop)


def part_of(batch: MicroBatch, rank: int, num_ranks: int) -> RowPart:
    """The part of a row that is one rank's: as many tokens for each, of a row that is filled up where it must be.

    Args:
        batch: sequences in one row.
        rank, num_ranks: of the group.

    Example: of 7 tokens rank 1 of 2 has the last three and a filler, which is a sequence of its own.
    """
    length = batch.input_ids.shape[1]
    filler, size = -length % num_ranks, -(-length // num_ranks)
    ids, positions, bounds = batch.input_ids, batch.position_ids, batch.bounds
    if filler:
        ids = torch.cat([ids, ids.new_zeros(1, filler)], 1)
        positions = torch.cat([positions, torch.arange(filler, device=positions.device)[None]], 1)
        bounds = torch.cat([bounds, bounds[-1:] + filler])
    own = slice(rank * size, (rank + 1) * size)
    edges = torch.tensor([own.start, own.stop], device=batch.states.device)
    first, last = torch.searchsorted(batch.states, edges).tolist()
    return RowPart(
        input_ids=ids[:, own],
        position_ids=positions[:, own],
        bounds=bounds,
        longest=max(int(batch.longest), filler),
        states=batch.states[first:last] - own.start,
        tokens=slice(first, last),
    )


class SequenceGroup:
    """The ranks that share the tokens of each row; all of them call each method, in the same order.

    Attributes:
        rank, size: who this is among how many.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def part_of(self, batch: MicroBatch) -> RowPart:
        """This rank's part of a row that all ranks of the group have."""
        return part_of(batch, self.rank, self.size)

    def gathered(self, own: Tensor, tokens: slice, num_tokens: int) -> Tensor:
        """Values of all response tokens of a row, [..., num_tokens], to the bit the same on all ranks; no gradient.

        Args:
            own: [..., own tokens].
            tokens: which of the row's these are.
        """
        whole = own.new_zeros(*own.shape[:-1], num_tokens)
        whole[..., tokens] = own.detach()
        dist.all_reduce(whole, group=self._group)
        return whole

    def by_heads(self, tensor: Tensor, num_heads: int) -> Tensor:
        """Give this rank's tokens of other ranks' heads for their tokens of its own.

        Args:
            tensor: [1, heads, tokens, size], of queries, keys or values.
            num_heads: of the queries, a multiple of the group's ranks.

        Returns:
            [1, heads / ranks, ranks · tokens, size]. Fewer heads than can be shared are repeated until they can, each
            beside its copies, so that they still belong to the same queries.
        """
        heads = math.lcm(tensor.shape[1], self.size)
        assert num_heads % heads == 0
        tensor = tensor.repeat_interleave(heads // tensor.shape[1], dim=1)
        _, _, length, width = tensor.shape
        parts = self._exchanged(tensor.reshape(self.size, heads // self.size, length, width))
        return parts.transpose(0, 1).reshape(1, heads // self.size, self.size * length, width)

    def by_tokens(self, tensor: Tensor) -> Tensor:
        """The way back: [1, ranks · tokens, heads / ranks, size] to [1, tokens, heads, size]."""
        _, length, heads, width = tensor.shape
        own = length // self.size
        parts = self._exchanged(tensor.reshape(self.size, own, heads, width))
        return parts.transpose(0, 1).reshape(1, own, self.size * heads, width)

    def _exchanged(self, parts: Tensor) -> Tensor:
        out: Tensor = _Exchange.apply(parts, self._group)  # type: ignore[no-untyped-call]
        return out


class _Exchange(torch.autograd.Function):
    """Part i [ranks, ...] goes to rank i, whose own comes in its place; gradients go the same way back."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        out = torch.empty_like(parts, memory_format=torch.contiguous_format)
        dist.all_to_all_single(out, parts.contiguous(), group=group)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        out = torch.empty_like(gradient, memory_format=torch.contiguous_format)
        dist.all_to_all_single(out, gradient.contiguous(), group=ctx.group)
        return out, None


def joined_sequence_group(size: int, deadline: timedelta) -> SequenceGroup | None:
    """The group of this rank, of `size` neighbours; None for 1. All ranks of all groups call it.

    Args:
        deadline: of each exchange.
    """
    if size == 1:
        return None
    firsts = range(0, dist.get_world_size(), size)
    groups = [dist.new_group(list(range(first, first + size)), timeout=deadline) for first in firsts]
    return SequenceGroup(groups[dist.get_rank() // size])
