"""Which elements of a model's parameters each rank's part of the optimizer holds; pure arithmetic, without tensors.

DeepSpeed keeps them in two ways. ZeRO 1 and 2 lay a group's parameters one after another, and cut the whole into equal
partitions; ZeRO 3 cuts each parameter, and lays a rank's slices one after another.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

ALIGNMENT = 2
"""ZeRO 1 and 2 fill a group up to a multiple of this for each rank (nccl_start_alignment_factor)."""


class Stretch(NamedTuple):
    """Neighbouring elements of one parameter, within a rank's flat tensor.

    Attributes:
        name: of the parameter.
        first: its element, in row-major order, with which the stretch begins.
        length: in elements.
        group: which of the rank's flat tensors they are in.
        start: where in it they begin.
    """

    name: str
    first: int
    length: int
    group: int
    start: int


class Copy(NamedTuple):
    """Elements that a rank of one slicing takes from a rank of another.

    Attributes:
        rank: whose flat tensor they come from.
        source: their place there.
        target: their place in the flat tensor of the rank that takes them; of the same length.
    """

    rank: int
    source: Stretch
    target: Stretch


@dataclass(frozen=True, slots=True)
class Slicing:
    """How parameters are cut up between ranks.

    Attributes:
        groups: lengths of parameters by name, in order; each group is a flat tensor of every rank.
        num_ranks: between which they are cut.
        by_parameter: whether each parameter is cut (ZeRO 3), else the group as a whole (ZeRO 1 and 2).
    """

    groups: tuple[Mapping[str, int], ...]
    num_ranks: int
    by_parameter: bool

    @classmethod
    def of(cls, shapes: Sequence[Mapping[str, Iterable[int]]], num_ranks: int, *, by_parameter: bool) -> "Slicing":
        """From the shapes of the optimizer's groups, as DeepSpeed tells them (`param_shapes`)."""
        groups = [{name: math.prod(shape) for name, shape in group.items()} for group in shapes]
        return cls(tuple(groups), num_ranks, by_parameter)

    def lengths(self) -> dict[str, int]:
        """Elements of each parameter, whatever its group."""
        return {name: length for group in self.groups for name, length in group.items()}

    def size(self, group: int) -> int:
        """Elements of each rank's flat tensor, filling included.

        Parameters of 5 and 4 elements on 2 ranks: 6 where the group is cut, 3 + 2 where each parameter is.
        """
        lengths = self.groups[group].values()
        if self.by_parameter:
            return sum(-(-length // self.num_ranks) for length in lengths)
        return -(-sum(lengths) // (ALIGNMENT * self.num_ranks)) * ALIGNMENT

    def stretches(self, rank: int) -> Iterator[Stretch]:
        """What a rank holds, in order of groups and places; filling is left out."""
        for group in range(len(self.groups)):
            yield from self._by_parameter(group, rank) if self.by_parameter else self._by_group(group, rank)

    def _by_parameter(self, group: int, rank: int) -> Iterator[Stretch]:
        start = 0
        for name, length in self.groups[group].items():
            slice_length = -(-length // self.num_ranks)
            first = rank * slice_length
            if first < length:
                yield Stretch(name, first, min(slice_length, length - first), group, start)
            start += slice_length

    def _by_group(self, group: int, rank: int) -> Iterator[Stretch]:
        size = self.size(group)
        begin, at = rank * size, 0
        for name, length in self.groups[group].items():
            first, end = max(at, begin), min(at + length, begin + size)
            if first < end:
                yield Stretch(name, first - at, end - first, group, first - begin)
            at += length


def copies(wanted: Iterable[Stretch], slicing: Slicing) -> Iterator[Copy]:
    """Where each element of what a rank is to hold comes from.

    Args:
        wanted: stretches of the rank in its own slicing.
        slicing: in which the elements are there.

    Raises:
        ValueError: they are not all there.
    """
    there: dict[str, list[tuple[int, Stretch]]] = {}
    for rank in range(slicing.num_ranks):
        for stretch in slicing.stretches(rank):
            there.setdefault(stretch.name, []).append((rank, stretch))
    for target in wanted:
        yield from _sources(target, there.get(target.name, ()))


def _sources(target: Stretch, there: Sequence[tuple[int, Stretch]]) -> Iterator[Copy]:
    end, covered = target.first + target.length, target.first
    for rank, found in there:
        first, until = max(found.first, target.first), min(found.first + found.length, end)
        if first >= until:
            continue
        count = until - first
        yield Copy(
            rank,
            found._replace(first=first, length=count, start=found.start + first - found.first),
            target._replace(first=first, length=count, start=target.start + first - target.first),
        )
        covered += count
    if covered != end:
        raise ValueError(f"elements {target.first} to {end} of {target.name} are not all there")
