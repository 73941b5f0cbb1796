"""The estimators of an evaluation: pass@k, and confidence intervals by the bootstrap."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dcpo_async.errors import AlgorithmError

RESAMPLES = 10_000
CONFIDENCE = 0.95
DRAWS_AT_ONCE = 1_000_000
"""Bounds the memory of the bootstrap: indices that are drawn at once."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over problems and the bounds of its confidence interval."""

    mean: float
    low: float
    high: float


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Probability that one of k responses is right, by the unbiased estimator 1 - C(n-c, k) / C(n, k).

    Chen et al. 2021 (arXiv 2107.03374), equation 1.

    Args:
        num_samples: n, responses to the problem.
        num_correct: c, those that are right, in [0, n].
        k: in [1, n].

    Example: with 1 of 4 responses right, pass@1 is 0.25 and pass@2 is 1 - 3/6 = 0.5.

    Raises AlgorithmError for numbers outside these bounds.
    """
    if not 0 <= num_correct <= num_samples or not 1 <= k <= num_samples:
        raise AlgorithmError(f"pass@{k} of {num_correct} right responses in {num_samples} is not defined")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def sizes_of_k(num_samples: int) -> list[int]:
    """1, 2, 4, … up to the number of samples, which is always the last: `sizes_of_k(6)` is `[1, 2, 4, 6]`."""
    powers = [1 << exponent for exponent in range(num_samples.bit_length()) if 1 << exponent < num_samples]
    return [*powers, num_samples]


def bootstrap_estimate(values_by_set: Sequence[Sequence[float]], seed: int, resamples: int = RESAMPLES) -> Estimate:
    """Mean over sets of the mean over problems, with the percentile bootstrap's 95 % interval over problems.

    Each set's problems are resampled by themselves (Efron & Tibshirani 1993, section 13.3); responses are not.

    Args:
        values_by_set: a value for each problem, such as its share of right responses; one set or several.
        seed: the same numbers give the same interval.
        resamples: of every set.

    Raises AlgorithmError where a set, or all of it, is empty.
    """
    sets = [np.asarray(values, dtype=np.float64) for values in values_by_set]
    if not sets or not all(len(values) for values in sets):
        raise AlgorithmError("the mean over no problems is not defined")
    random = np.random.default_rng(seed)
    means = np.mean([_resampled_means(values, resamples, random) for values in sets], axis=0)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(means, (tail, 100 - tail))
    return Estimate(float(np.mean([values.mean() for values in sets])), float(low), float(high))


def _resampled_means(values: NDArray[np.float64], resamples: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Means of resamples with replacement, [resamples]."""
    rows = max(1, DRAWS_AT_ONCE // len(values))
    means = [
        values[random.integers(0, len(values), (min(rows, resamples - start), len(values)))].mean(axis=1)
        for start in range(0, resamples, rows)
    ]
    return np.concatenate(means)
