"""Which prompts rest: solved ones, and hopeless ones too where that is asked for. Pure."""

import math
from dataclasses import dataclass
from typing import Literal

Judgement = Literal["open", "solved", "hopeless"]
ONE_SIDED_95 = 1.6448536269514722
"""Standard deviations of a normal distribution above which 5 % lie."""


@dataclass(frozen=True, slots=True)
class History:
    """What has been counted of a prompt.

    Attributes:
        rewards: of its counted visits, oldest first.
        last_visit: number of the last of them, from 1; 0 before the first.
    """

    rewards: tuple[tuple[float, ...], ...]
    last_visit: int


@dataclass(frozen=True, slots=True)
class Selection:
    """A policy of rests, a pure function of what has been counted of a prompt.

    Attributes:
        bound: a prompt is solved where the lower bound of its pass rate is at least 1 - bound, and hopeless where the
            upper one is at most bound.
        half_life_visits: an earlier visit weighs 2^(-1/half life) for each visit since.
        look_again_epochs: a prompt that rests is visited again so many epochs after its last counted visit.
        reward_range: lowest and highest reward; a pass rate is where between them a mean lies, 0 to 1.
        is_of_solved: only solved prompts rest.

    Example: of 8 responses to each of 2 visits all are right; with a half-life of 4 visits they count as 14.7, the
    lower bound is 14.7 / (14.7 + 2.71) = 0.845, and the prompt rests with a bound of 0.2.
    """

    bound: float
    half_life_visits: float
    look_again_epochs: int
    reward_range: tuple[float, float] = (0.0, 1.0)
    is_of_solved: bool = False

    def judgement(self, history: History) -> Judgement:
        """What the bounds of its pass rate say of a prompt.

        A reward outside its range, as a penalty is, counts as the nearer end.
        """
        low, high = self.reward_range
        decay, trials, passes = 2.0 ** (-1.0 / self.half_life_visits), 0.0, 0.0
        for rewards in history.rewards:
            trials = trials * decay + len(rewards)
            passes = passes * decay + math.fsum(
                (min(max(reward, low), high) - low) / (high - low) for reward in rewards
            )
        if not trials:
            return "open"
        least, most = wilson_bounds(passes, trials)
        if least >= 1.0 - self.bound:
            return "solved"
        return "hopeless" if most <= self.bound else "open"

    def rests(self, history: History, visit: int) -> bool:
        """Whether a prompt is passed over at its visit of this number (from 1)."""
        resting = ("solved",) if self.is_of_solved else ("solved", "hopeless")
        return visit - history.last_visit < self.look_again_epochs and self.judgement(history) in resting


def wilson_bounds(passes: float, trials: float, deviations: float = ONE_SIDED_95) -> tuple[float, float]:
    """Lower and upper bound of a rate, each wrong in 5 % of cases (Wilson 1927, the score interval).

    Args:
        passes: number of successes, in [0, trials]; decayed counts are no whole numbers.
        trials: above 0.
        deviations: in standard deviations.

    Example: 8 of 8 give 0.747 and 1.
    """
    square = deviations**2
    centre = (passes + square / 2) / (trials + square)
    spread = max(passes * (trials - passes), 0.0) / trials
    half = deviations / (trials + square) * math.sqrt(spread + square / 4)
    return max(centre - half, 0.0), min(centre + half, 1.0)
