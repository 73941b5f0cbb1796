import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.checkpoints.slicing import Copy, Slicing, Stretch, copies

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=8)


@st.composite
def slicings(draw: st.DrawFn, lengths: Sequence[int]) -> Slicing:
    """Any way to cut these parameters: kinds, ranks, groups and the order within them."""
    order = draw(st.permutations(range(len(lengths))))
    cuts = sorted(draw(st.sets(st.integers(1, len(lengths)), max_size=3)) | {0, len(lengths)})
    groups = tuple(
        {f"p{number}": lengths[number] for number in order[start:end]} for start, end in itertools.pairwise(cuts)
    )
    return Slicing(groups, draw(st.integers(1, 9)), draw(st.booleans()))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[list[int], Slicing, Slicing]:
    lengths = draw(LENGTHS)
    return lengths, draw(slicings(lengths)), draw(slicings(lengths))


def held(slicing: Slicing, rank: int, whole: dict[str, list[int]]) -> list[list[int]]:
    """A rank's flat tensors of whole parameters; filling is -1."""
    flats = [[-1] * slicing.size(group) for group in range(len(slicing.groups))]
    for name, first, length, group, start in slicing.stretches(rank):
        assert flats[group][start : start + length] == [-1] * length
        flats[group][start : start + length] = whole[name][first : first + length]
    return flats


def whole_of(lengths: Sequence[int]) -> dict[str, list[int]]:
    return {f"p{number}": [number * 1000 + i for i in range(length)] for number, length in enumerate(lengths)}


def test_two_parameters_on_two_ranks_lie_as_deepspeed_has_them() -> None:
    groups = ({"a": 5, "b": 4},)
    by_group, by_parameter = Slicing(groups, 2, by_parameter=False), Slicing(groups, 2, by_parameter=True)
    assert (by_group.size(0), by_parameter.size(0)) == (6, 5)
    assert list(by_group.stretches(0)) == [Stretch("a", 0, 5, 0, 0), Stretch("b", 0, 1, 0, 5)]
    assert list(by_group.stretches(1)) == [Stretch("b", 1, 3, 0, 0)]
    assert list(by_parameter.stretches(0)) == [Stretch("a", 0, 3, 0, 0), Stretch("b", 0, 2, 0, 3)]
    assert list(by_parameter.stretches(1)) == [Stretch("a", 3, 2, 0, 0), Stretch("b", 2, 2, 0, 3)]


@settings(deadline=None)
@given(pairs())
def test_each_element_is_held_once(given_pair: tuple[list[int], Slicing, Slicing]) -> None:
    lengths, slicing, _ = given_pair
    whole = whole_of(lengths)
    found = [value for rank in range(slicing.num_ranks) for flat in held(slicing, rank, whole) for value in flat]
    assert sorted(value for value in found if value >= 0) == sorted(
        value for values in whole.values() for value in values
    )


@settings(deadline=None)
@given(pairs())
def test_what_is_copied_is_what_a_rank_would_hold_of_the_whole(given_pair: tuple[list[int], Slicing, Slicing]) -> None:
    lengths, before, after = given_pair
    whole = whole_of(lengths)
    there = [held(before, rank, whole) for rank in range(before.num_ranks)]
    for rank in range(after.num_ranks):
        flats = [[-1] * after.size(group) for group in range(len(after.groups))]
        for rank_before, source, target in copies(after.stretches(rank), before):
            taken = there[rank_before][source.group][source.start : source.start + source.length]
            flats[target.group][target.start : target.start + target.length] = taken
        assert flats == held(after, rank, whole)


def test_a_copy_names_both_places() -> None:
    before, after = Slicing(({"a": 6},), 2, by_parameter=True), Slicing(({"a": 6},), 3, by_parameter=True)
    assert list(copies(after.stretches(1), before)) == [
        Copy(0, Stretch("a", 2, 1, 0, 2), Stretch("a", 2, 1, 0, 0)),
        Copy(1, Stretch("a", 3, 1, 0, 0), Stretch("a", 3, 1, 0, 1)),
    ]


def test_elements_that_are_nowhere_are_refused() -> None:
    wanted = [Stretch("a", 0, 7, 0, 0)]
    with pytest.raises(ValueError, match="elements 0 to 7 of a are not all there"):
        list(copies(wanted, Slicing(({"a": 6},), 2, by_parameter=True)))
