"""The order of several sources: parts, gaps, and that it is a function of the position alone."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcpo_async.errors import ConfigError
from dcpo_async.prompts.order import PromptOrder
from learner.visits.mixture import MixedOrder, SourcePart

weights = st.lists(st.sampled_from([0.1, 0.25, 0.3, 1.0, 2.0, 7.0, 100.0]), min_size=1, max_size=4)


def order_of(sizes: list[int], parts: list[float], seed: int = 0, min_gap: int = 4) -> MixedOrder:
    named = [SourcePart(f"s{place}", *both) for place, both in enumerate(zip(sizes, parts, strict=True))]
    return MixedOrder(named, seed, min_gap)


def sources_of(order: MixedOrder, sizes: list[int], num_positions: int) -> list[int]:
    bounds = [sum(sizes[: place + 1]) for place in range(len(sizes))]
    indices = [order.index(position) for position in range(num_positions)]
    return [next(place for place, bound in enumerate(bounds) if index < bound) for index in indices]


def test_weights_of_three_and_one_give_three_visits_of_four() -> None:
    assert sources_of(order_of([50, 50], [3, 1]), [50, 50], 8) == [0, 0, 0, 1, 0, 0, 0, 1]


@given(weights, st.integers(0, 3), st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_each_source_is_never_a_whole_visit_from_its_part(parts: list[float], seed: int, min_gap: int) -> None:
    sizes = [40] * len(parts)
    total = sum(Fraction(repr(part)) for part in parts)
    taken = [0] * len(parts)
    for number, source in enumerate(sources_of(order_of(sizes, parts, seed, min_gap), sizes, 300), start=1):
        taken[source] += 1
        assert all(
            abs(count - number * Fraction(repr(part)) / total) < 1 for count, part in zip(taken, parts, strict=True)
        )


@given(weights, st.integers(0, 3), st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_two_visits_of_a_prompt_are_min_gap_apart_and_are_counted(parts: list[float], seed: int, min_gap: int) -> None:
    order = order_of([min_gap + 2] * len(parts), parts, seed, min_gap)
    last: dict[int, int] = {}
    visits: dict[int, int] = {}
    for position in range(400):
        index = order.index(position)
        assert position - last.get(index, -min_gap) >= min_gap
        assert order.epoch(position) == visits.get(index, 0)
        last[index], visits[index] = position, visits.get(index, 0) + 1


@given(st.lists(st.integers(0, 500), min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_a_position_alone_decides_wherever_one_comes_from(positions: list[int]) -> None:
    sizes, parts = [9, 20], [0.7, 0.3]
    walked = order_of(sizes, parts)
    expected = [(walked.index(position), walked.epoch(position)) for position in range(501)]
    jumping = order_of(sizes, parts)
    for position in positions:
        assert (jumping.index(position), jumping.epoch(position)) == expected[position]


def test_a_sources_own_order_is_the_one_that_it_has_alone() -> None:
    order, alone = order_of([30, 30], [1, 1], seed=5, min_gap=0), PromptOrder(30, 5, 1)
    own = [index for position in range(120) if (index := order.index(position)) < 30]
    assert own == [alone.index(number) for number in range(60)]


def test_a_source_that_is_too_small_for_its_weight_is_named() -> None:
    with pytest.raises(ConfigError, match=r"source s1 has 5 usable prompts; with its weight of 1 it needs 6"):
        order_of([50, 5], [1, 1], min_gap=10)
