"""The endless order of prompts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcpo_async.errors import ConfigError
from dcpo_async.prompts import PromptOrder

SIZES = st.integers(1, 30).flatmap(lambda num: st.tuples(st.just(num), st.integers(0, num)))
SEEDS = st.integers(0, 2**63)


def first(order: PromptOrder, num_positions: int) -> list[int]:
    return [order.index(position) for position in range(num_positions)]


@given(SIZES, SEEDS)
def test_every_epoch_visits_every_prompt_once(size: tuple[int, int], seed: int) -> None:
    num_prompts, min_gap = size
    order = PromptOrder(num_prompts, seed, min_gap)
    for epoch in range(4):
        positions = range(epoch * num_prompts, (epoch + 1) * num_prompts)
        assert sorted(map(order.index, positions)) == list(range(num_prompts))
        assert {order.epoch(position) for position in positions} == {epoch}


@given(SIZES, SEEDS)
def test_visits_of_one_prompt_keep_their_distance(size: tuple[int, int], seed: int) -> None:
    num_prompts, min_gap = size
    indices = first(PromptOrder(num_prompts, seed, min_gap), 5 * num_prompts)
    for start in range(len(indices) - min_gap + 1):
        window = indices[start : start + min_gap]
        assert len(set(window)) == len(window)


@given(SIZES, SEEDS, st.lists(st.integers(0, 149), min_size=1, max_size=20))
def test_any_position_is_found_alone_and_in_any_sequence(
    size: tuple[int, int], seed: int, positions: list[int]
) -> None:
    num_prompts, min_gap = size
    expected = first(PromptOrder(num_prompts, seed, min_gap), 150)
    jumping = PromptOrder(num_prompts, seed, min_gap)
    for position in positions:
        assert jumping.index(position) == expected[position]
        assert PromptOrder(num_prompts, seed, min_gap).index(position) == expected[position]


@given(SIZES, SEEDS)
def test_the_gap_is_kept_by_the_greedy_choice_and_nothing_else(size: tuple[int, int], seed: int) -> None:
    """The oracle is the rule itself, walked naively: the first of the shuffle that has rested long enough."""
    num_prompts, min_gap = size
    with_gap = PromptOrder(num_prompts, seed, min_gap)
    shuffles = PromptOrder(num_prompts, seed, 0)
    last_position = {}
    for epoch in range(4):
        start = epoch * num_prompts
        waiting = [shuffles.index(start + offset) for offset in range(num_prompts)]
        for position in range(start, start + num_prompts):
            rested = (prompt for prompt in waiting if last_position.get(prompt, -min_gap) <= position - min_gap)
            chosen = next(rested)
            waiting.remove(chosen)
            last_position[chosen] = position
            assert with_gap.index(position) == chosen


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    order = first(PromptOrder(50, seed=1, min_gap=10), 150)
    epochs = {tuple(order[start : start + 50]) for start in (0, 50, 100)}
    assert len(epochs | {tuple(first(PromptOrder(50, seed=2, min_gap=10), 50)), tuple(range(50))}) == 5


def test_the_order_is_the_same_in_every_process_and_version() -> None:
    assert first(PromptOrder(6, seed=7, min_gap=3), 18) == [
        0,
        2,
        1,
        4,
        3,
        5,
        1,
        3,
        2,
        0,
        4,
        5,
        2,
        0,
        4,
        1,
        5,
        3,
    ]


def test_too_few_prompts_for_the_gap_are_refused_with_both_numbers() -> None:
    PromptOrder(320, seed=0, min_gap=320)
    with pytest.raises(ConfigError, match=r"319 prompts are too few.* 320 positions apart"):
        PromptOrder(319, seed=0, min_gap=320)
    with pytest.raises(ConfigError, match="0 prompts"):
        PromptOrder(0, seed=0, min_gap=0)


def test_a_negative_position_is_refused() -> None:
    with pytest.raises(IndexError, match="-1"):
        PromptOrder(5, seed=0, min_gap=2).index(-1)
