"""Exact statistics of all rewards that one prompt has received."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from dcpo_async.errors import AlgorithmError
from dcpo_async.limits import NANO

Exact = int | Fraction


@dataclass(frozen=True, slots=True)
class RewardStats:
    """Count, sum and sum of squares of a prompt's rewards, as integers of billionths.

    Integers add without rounding, so neither the order of groups nor a restart can change a bit; a
    database row holds the four fields as they are.

    Attributes:
        visits: groups counted so far.
        count: rewards counted so far.
        sum_nano: Σr in billionths.
        sum_sq_nano: Σr² in billionths of a billionth; 10¹⁸ for each reward of 1.

    Raises:
        AlgorithmError: the four numbers cannot come from any set of rewards.

    Example: rewards (1, 0, 0, 0) give visits 1, count 4, mean 0.25, m2 0.75, std 0.5.
    """

    visits: int = 0
    count: int = 0
    sum_nano: int = 0
    sum_sq_nano: int = 0

    def __post_init__(self) -> None:
        row = (self.visits, self.count, self.sum_nano, self.sum_sq_nano)
        if not all(isinstance(value, int) for value in row):
            raise AlgorithmError(f"reward statistics {row}: only whole numbers are exact; restore them as int")
        possible = 0 <= self.visits <= self.count and (self.visits == 0) == (self.count == 0)
        # Cauchy-Schwarz says nothing about the squares when count is 0, hence the last condition.
        if not possible or self._spread() < 0 or (self.count == 0 and self.sum_sq_nano != 0):
            raise AlgorithmError(
                f"reward statistics (visits, count, sum_nano, sum_sq_nano) = {row} cannot come from "
                "rewards: the stored row is damaged"
            )

    @property
    def mean(self) -> float:
        """Mean reward; 0 before the first visit."""
        return self.sum_nano / (self.count * NANO) if self.count else 0.0

    @property
    def m2(self) -> float:
        """Sum of squared deviations from the mean, Σ(r − mean)²; 0 before the first visit."""
        return self._spread() / (self.count * NANO**2) if self.count else 0.0

    @property
    def is_constant(self) -> bool:
        """Whether all rewards are equal, decided exactly: n·Σr² = (Σr)²."""
        return self._spread() == 0

    def std(self, ddof: int = 1) -> float:
        """Standard deviation √(m2 / (count − ddof)); 0 for equal rewards, a single one included.

        Raises AlgorithmError for a ddof other than 0 (population) or 1 (sample).
        """
        _check_ddof(ddof)
        if self.is_constant:
            return 0.0
        return math.sqrt(self._spread() / (self.count * (self.count - ddof) * NANO**2))

    def with_rewards(self, rewards: Iterable[float]) -> "RewardStats":
        """Return the statistics after one more visit; each reward is rounded to the nearest billionth.

        Raises AlgorithmError for an empty group or a reward that is not finite.
        """
        nanos = [to_nano(reward) for reward in rewards]
        if not nanos:
            raise AlgorithmError("a group without rewards cannot be counted: a visit has at least one response")
        return RewardStats(
            visits=self.visits + 1,
            count=self.count + len(nanos),
            sum_nano=self.sum_nano + sum(nanos),
            sum_sq_nano=self.sum_sq_nano + sum(nano * nano for nano in nanos),
        )

    def standardize(self, reward: float, ddof: int = 1) -> float:
        """Return (reward − mean) / std, or 0 where all rewards are equal.

        Rounded only at the end, so that scores of equal size are equal in float too.
        Raises as std and to_nano do.
        Example: of (1, 0, 0, 0) with ddof 1, reward 1 is at 1.5 and reward 0 at −0.5.
        """
        return standardized(reward, self.count, self.sum_nano, self.sum_sq_nano, ddof)

    def _spread(self) -> int:
        """count²·variance in squared billionths: n·Σr² − (Σr)²."""
        return self.count * self.sum_sq_nano - self.sum_nano**2


def to_nano(reward: float) -> int:
    """Return the reward in billionths, rounded to the nearest; raises AlgorithmError if it is not finite."""
    nano = float(reward) * NANO
    if not math.isfinite(nano):
        raise AlgorithmError(f"reward {reward} is not finite: grade the response again or leave the group out")
    return round(nano)


def standardized(reward: float, count: Exact, sum_nano: Exact, sum_sq_nano: Exact, ddof: int) -> float:
    """Return (reward − mean) / std of rewards of which each may count for any positive share, 0 where all are equal.

    Args:
        count, sum_nano, sum_sq_nano: as in RewardStats, each reward multiplied by its share.
        ddof: 1 divides the variance by count − 1, 0 by count.

    Raises AlgorithmError as RewardStats.std and to_nano do.
    """
    _check_ddof(ddof)
    spread = count * sum_sq_nano - sum_nano**2
    if spread == 0:
        return 0.0
    deviation = count * to_nano(reward) - sum_nano
    square = deviation**2 * (count - ddof) / (count * spread)
    return math.copysign(math.sqrt(square), deviation)


def deviation(reward: float, stats: RewardStats) -> float:
    """Return reward − mean, rounded only at the end: exactly 0 where all rewards are equal.

    Raises AlgorithmError as to_nano does.
    """
    return (stats.count * to_nano(reward) - stats.sum_nano) / (stats.count * NANO)


def _check_ddof(ddof: int) -> None:
    if ddof not in (0, 1):
        raise AlgorithmError(f"ddof {ddof}: use 0 (population) or 1 (sample)")
