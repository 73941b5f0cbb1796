"""Figures across runs: means with confidence intervals, and curves that were measured at different places."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev
from typing import Any

from mpmath import mp

from dcpo_async.errors import AlgorithmError

CONFIDENCE = 0.95
NOTHING = "–"
LEAST_RUNS = 3
"""Of two, Student's interval is 13 times their standard error: it says nothing, and is not shown."""
_QUANTILE_DIGITS = 20


@dataclass(frozen=True, slots=True)
class Measured:
    """A figure and the bounds of its 95 % interval; None where one run alone gives no interval."""

    mean: float
    low: float | None = None
    high: float | None = None


def written(value: Measured | None, form: str = ".1f", scale: float = 1.0, unit: str = "") -> str:
    """A figure and its interval as text, each bound times `scale` and in the format `form`; – where there is none.

    Example: 0.931 from 0.91 to 0.95 in percent, at scale 100, is '93.1 [91.0, 95.0]'.
    """
    if value is None:
        return NOTHING
    mean = f"{scale * value.mean:{form}}"
    if value.low is None or value.high is None:
        return mean + unit
    return f"{mean} [{scale * value.low:{form}}, {scale * value.high:{form}}]{unit}"


@dataclass(frozen=True, slots=True)
class Curve:
    """A figure over x.

    Attributes:
        x: ascending, such as optimizer steps, tokens or seconds.
        values: one for each x.
    """

    x: tuple[float, ...]
    values: tuple[Measured, ...]

    def at(self, x: float) -> Measured | None:
        """The value at x, mean and bounds each interpolated linearly; None outside what was measured.

        Example: between 0.2 at x = 10 and 0.4 at x = 20 the mean at 15 is 0.3.
        """
        if not self.x or not self.x[0] <= x <= self.x[-1]:
            return None
        place = bisect_left(self.x, x)
        above = self.values[place]
        if self.x[place] == x:
            return above
        below = self.values[place - 1]
        share = (x - self.x[place - 1]) / (self.x[place] - self.x[place - 1])
        mean = below.mean + share * (above.mean - below.mean)
        if below.low is None or below.high is None or above.low is None or above.high is None:
            return Measured(mean)
        return Measured(
            mean, below.low + share * (above.low - below.low), below.high + share * (above.high - below.high)
        )


@cache
def t_quantile(degrees_of_freedom: int) -> float:
    """The t that Student's distribution leaves with probability 5 %, on both sides together.

    It solves I_{ν/(ν+t²)}(ν/2, 1/2) = 0.05, where I is the regularized incomplete beta function.

    Example: 12.706 for ν = 1, 4.303 for ν = 2, 2.776 for ν = 4.

    Raises AlgorithmError for ν under 1.
    """
    nu = degrees_of_freedom
    if nu < 1:
        raise AlgorithmError(f"Student's distribution with {nu} degrees of freedom is not defined")
    with mp.workdps(_QUANTILE_DIGITS):
        half = mp.mpf(nu) / 2

        def excess(t: Any) -> Any:
            return mp.betainc(half, 0.5, 0, nu / (nu + t * t), regularized=True) - (1 - CONFIDENCE)

        return float(mp.findroot(excess, (1.9, 13.0), solver="anderson"))


def across_runs(values: Sequence[float]) -> Measured:
    """Mean over runs with Student's 95 % interval, mean ± t·s/√n; a single run has no interval.

    Args:
        values: one for each run of a configuration, independent of each other.

    Example: (0.2, 0.4) have the mean 0.3 and s/√2 = 0.1, hence the interval 0.3 ± 1.2706.

    Raises AlgorithmError where there is no value.
    """
    if not values:
        raise AlgorithmError("the mean over no runs is not defined")
    mean = fmean(values)
    if len(values) == 1:
        return Measured(mean)
    half = t_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Measured(mean, mean - half, mean + half)


def across_enough_runs(values: Sequence[float]) -> Measured:
    """As `across_runs`, but fewer than LEAST_RUNS have no interval either."""
    return across_runs(values) if len(values) >= LEAST_RUNS else Measured(fmean(values))


def difference(values: Sequence[float], others: Sequence[float], *, is_paired: bool) -> Measured:
    """Mean of the first minus that of the others, with a 95 % interval; none where either side has under LEAST_RUNS.

    Args:
        values, others: one for each run of two configurations.
        is_paired: the runs at one place share a seed: Student's interval of their differences. Else Welch's, with its
            degrees of freedom (s²/n + s'²/n')² / ((s²/n)²/(n-1) + (s'²/n')²/(n'-1)) rounded down, which only widens it.

    Example: (3, 4, 5) minus (1, 2, 3) is 2, unpaired 2 ± 2.2670: s²/n is 1/3 on both sides, so t(4) · √(2/3).

    Raises AlgorithmError where one side has no value.
    """
    if not values or not others:
        raise AlgorithmError("the difference of no runs is not defined")
    if is_paired:
        return across_enough_runs([own - other for own, other in zip(values, others, strict=True)])
    mean = fmean(values) - fmean(others)
    if min(len(values), len(others)) < LEAST_RUNS:
        return Measured(mean)
    own, other = (stdev(side) ** 2 / len(side) for side in (values, others))
    if own + other == 0:
        return Measured(mean, mean, mean)
    freedom = (own + other) ** 2 / (own**2 / (len(values) - 1) + other**2 / (len(others) - 1))
    half = t_quantile(int(freedom + 1e-9)) * math.sqrt(own + other)
    return Measured(mean, mean - half, mean + half)


def value_at(curves: Sequence[Curve], x: float) -> Measured | None:
    """The value of a configuration at x, from the curve of each of its runs.

    Several runs give the mean of their values there, with Student's interval; a single one gives its own value with its
    own interval. None where a curve does not reach x.
    """
    found = [curve.at(x) for curve in curves]
    values = [value for value in found if value is not None]
    if not values or len(values) < len(found):
        return None
    return values[0] if len(values) == 1 else across_runs([value.mean for value in values])


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The curve of a configuration: `value_at` wherever one of its runs was measured and all of them have a value."""
    grid = sorted({x for curve in curves for x in curve.x})
    points = [(x, value) for x in grid if (value := value_at(curves, x)) is not None]
    return Curve(tuple(x for x, _ in points), tuple(value for _, value in points))
