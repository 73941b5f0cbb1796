from itertools import combinations, product
from statistics import fmean

import numpy as np
import pytest

from dcpo_async.errors import AlgorithmError
from dcpo_async.evaluation.statistics import bootstrap_estimate, pass_at_k, sizes_of_k


@pytest.mark.parametrize("num_samples", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_choices_of_k_responses_that_hold_a_right_one(num_samples: int) -> None:
    for num_correct, k in product(range(num_samples + 1), range(1, num_samples + 1)):
        responses = [index < num_correct for index in range(num_samples)]
        brute_force = fmean(any(chosen) for chosen in combinations(responses, k))
        assert pass_at_k(num_samples, num_correct, k) == pytest.approx(brute_force, abs=1e-12)


def test_pass_at_k_by_hand() -> None:
    assert pass_at_k(4, 1, 1) == 0.25
    assert pass_at_k(4, 1, 2) == 0.5
    assert pass_at_k(4, 2, 2) == pytest.approx(5 / 6)
    assert pass_at_k(32, 1, 32) == 1.0


@pytest.mark.parametrize(("num_samples", "num_correct", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)])
def test_pass_at_k_outside_its_definition_is_refused(num_samples: int, num_correct: int, k: int) -> None:
    with pytest.raises(AlgorithmError, match="is not defined"):
        pass_at_k(num_samples, num_correct, k)


@pytest.mark.parametrize(
    ("num_samples", "sizes"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (32, [1, 2, 4, 8, 16, 32])]
)
def test_k_doubles_up_to_the_number_of_samples(num_samples: int, sizes: list[int]) -> None:
    assert sizes_of_k(num_samples) == sizes


def test_the_interval_is_that_of_all_possible_resamples() -> None:
    values = [0.0, 0.1, 0.3, 0.55, 1.0]
    means = [fmean(resample) for resample in product(values, repeat=5)]
    low, high = np.percentile(means, (2.5, 97.5))
    estimate = bootstrap_estimate([values], seed=0)
    assert estimate.mean == pytest.approx(0.39)
    assert estimate.low == pytest.approx(low, abs=0.015)
    assert estimate.high == pytest.approx(high, abs=0.015)


def test_for_many_problems_the_interval_is_the_normal_one() -> None:
    values = [1.0] * 120 + [0.0] * 280
    estimate = bootstrap_estimate([values], seed=0)
    half = 1.96 * (0.3 * 0.7 / 400) ** 0.5
    assert estimate.mean == pytest.approx(0.3)
    assert (estimate.low, estimate.high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.005)


def test_the_average_of_sets_weighs_them_equally_and_resamples_each_by_itself() -> None:
    small, large = [1.0, 0.0] * 50, [1.0, 0.0, 0.0, 0.0] * 100
    estimate = bootstrap_estimate([small, large], seed=0)
    half = 1.96 * ((0.25 / 100 + 0.1875 / 400) / 4) ** 0.5
    assert estimate.mean == pytest.approx((0.5 + 0.25) / 2)
    assert (estimate.low, estimate.high) == pytest.approx((0.375 - half, 0.375 + half), abs=0.006)


def test_problems_that_agree_leave_no_doubt() -> None:
    estimate = bootstrap_estimate([[0.5] * 30], seed=0)
    assert (estimate.mean, estimate.low, estimate.high) == (0.5, 0.5, 0.5)


def test_the_seed_decides_the_interval() -> None:
    values = np.random.default_rng(1).random(50).tolist()
    assert bootstrap_estimate([values], seed=3) == bootstrap_estimate([values], seed=3)
    assert bootstrap_estimate([values], seed=3) != bootstrap_estimate([values], seed=4)


@pytest.mark.parametrize("sets", [[], [[]], [[1.0], []]])
def test_nothing_has_no_mean(sets: list[list[float]]) -> None:
    with pytest.raises(AlgorithmError, match="no problems"):
        bootstrap_estimate(sets, seed=0)
