"""RewardStats against exact fractions, in any order and any grouping."""

import itertools
import math
import statistics
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcpo_async.algorithm import RewardStats
from dcpo_async.errors import AlgorithmError

billionths = st.integers(-2_000_000_000, 2_000_000_000)
groups = st.lists(st.lists(billionths, min_size=1, max_size=6), min_size=1, max_size=6)


def counted(groups_of_billionths: list[list[int]]) -> RewardStats:
    stats = RewardStats()
    for group in groups_of_billionths:
        stats = stats.with_rewards([nano / 1_000_000_000 for nano in group])
    return stats


def test_worked_example_of_the_docstring() -> None:
    stats = RewardStats().with_rewards([1, 0, 0, 0])
    assert stats == RewardStats(visits=1, count=4, sum_nano=10**9, sum_sq_nano=10**18)
    assert (stats.mean, stats.m2, stats.std(), stats.std(ddof=0)) == (0.25, 0.75, 0.5, math.sqrt(3) / 4)


def test_statistics_of_no_rewards_are_zero_and_constant() -> None:
    empty = RewardStats()
    assert (empty.visits, empty.count, empty.mean, empty.m2, empty.std()) == (0, 0, 0.0, 0.0, 0.0)
    assert empty.is_constant


def test_counting_leaves_the_earlier_statistics_as_they_were() -> None:
    before = RewardStats(1, 2, 10**9, 10**18)
    before.with_rewards([1.0])
    assert before == RewardStats(1, 2, 10**9, 10**18)


@given(groups, st.randoms(use_true_random=False))
def test_any_order_of_groups_and_rewards_gives_identical_integers(all_groups: list[list[int]], random) -> None:
    shuffled = [random.sample(group, len(group)) for group in all_groups]
    random.shuffle(shuffled)
    assert counted(shuffled) == counted(all_groups)


@given(groups)
def test_any_merge_of_groups_differs_in_visits_alone(all_groups: list[list[int]]) -> None:
    merged = counted([list(itertools.chain.from_iterable(all_groups))])
    apart = counted(all_groups)
    assert apart.visits == len(all_groups)
    assert (apart.count, apart.sum_nano, apart.sum_sq_nano) == (
        merged.count,
        merged.sum_nano,
        merged.sum_sq_nano,
    )


@given(groups)
def test_mean_m2_and_std_are_the_exact_ones_rounded(all_groups: list[list[int]]) -> None:
    rewards = [Fraction(nano, 1_000_000_000) for group in all_groups for nano in group]
    stats = counted(all_groups)
    mean = sum(rewards) / len(rewards)
    assert stats.mean == float(mean)
    assert stats.m2 == float(sum((reward - mean) ** 2 for reward in rewards))
    assert stats.std(ddof=0) == pytest.approx(statistics.pstdev(rewards), rel=1e-12)
    if len(rewards) > 1:
        assert stats.std(ddof=1) == pytest.approx(statistics.stdev(rewards), rel=1e-12)


@given(st.lists(billionths, min_size=1, max_size=8))
def test_constant_means_that_all_rewards_are_equal(group: list[int]) -> None:
    assert counted([group]).is_constant == (len(set(group)) == 1)


def test_rewards_that_floats_cannot_tell_from_their_mean_are_still_constant() -> None:
    stats = RewardStats().with_rewards([0.1] * 3).with_rewards([0.1] * 7)
    assert stats.is_constant
    assert stats.std() == 0.0
    assert stats.standardize(0.1) == 0.0


def test_one_reward_that_differs_by_a_billionth_is_not_constant() -> None:
    stats = RewardStats().with_rewards([1.0] * 100_000 + [0.999999999])
    assert not stats.is_constant
    assert stats.std() > 0


def test_rewards_that_round_to_the_same_billionth_are_equal() -> None:
    stats = RewardStats().with_rewards([0.7, 0.7 + 1e-10, 0.7 - 1e-10])
    assert stats.is_constant
    assert stats.standardize(0.7 + 1e-10) == 0.0


def test_rewards_are_rounded_to_the_nearest_billionth() -> None:
    stats = RewardStats().with_rewards([0.1 + 0.2, 1 / 3, -2 / 3])
    assert stats.sum_nano == 300_000_000 + 333_333_333 - 666_666_667


def test_standardize_of_the_docstring_example() -> None:
    stats = RewardStats().with_rewards([1, 0, 0, 0])
    assert (stats.standardize(1), stats.standardize(0)) == (1.5, -0.5)
    assert stats.standardize(1, ddof=0) == pytest.approx(math.sqrt(3), rel=1e-15)


def test_scores_of_equal_size_are_equal_in_float() -> None:
    stats = RewardStats().with_rewards([0.1, 0.4, 0.7, 0.4])
    assert stats.standardize(0.1) == -stats.standardize(0.7)


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf, 1e308])
def test_a_reward_that_is_not_finite_is_refused_by_value(reward: float) -> None:
    with pytest.raises(AlgorithmError, match=f"reward {reward}".replace("+", r"\+")):
        RewardStats().with_rewards([1.0, reward])


def test_an_empty_group_is_refused() -> None:
    with pytest.raises(AlgorithmError, match="without rewards"):
        RewardStats().with_rewards([])


@pytest.mark.parametrize("ddof", [-1, 2])
def test_a_ddof_other_than_0_and_1_is_refused(ddof: int) -> None:
    with pytest.raises(AlgorithmError, match=f"ddof {ddof}"):
        RewardStats(1, 2, 10**9, 10**18).std(ddof)


@pytest.mark.parametrize(
    "row",
    [
        (-1, 0, 0, 0),
        (3, 2, 0, 0),
        (0, 2, 0, 0),
        (1, 0, 0, 0),
        (0, 0, 0, 5),
        (0, 0, 5, 0),
        (1, 2, 10**9, 10**18 // 2 - 1),
        (1, 2, 1.0, 10**18),
    ],
)
def test_a_row_that_no_rewards_can_give_is_refused(row: tuple[int, int, int, int]) -> None:
    with pytest.raises(AlgorithmError, match="reward statistics"):
        RewardStats(*row)
