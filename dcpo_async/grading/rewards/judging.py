"""What a worker does with an own reward: it loads it once, calls it within bounds, and makes a verdict of it."""

import math
from numbers import Real
from typing import NamedTuple

from dcpo_async.errors import ConfigError
from dcpo_async.grading.interface import Submission
from dcpo_async.grading.rewards.function import RewardFunction, require_digest
from dcpo_async.grading.verdict import Reason, Verdict
from dcpo_async.grading.worker import confine, limited
from dcpo_async.limits import quoted, rounded_reward

MAX_REASON = 100
"""Characters of a verdict's own words."""


class Judged(NamedTuple):
    """A verdict, and for people what went wrong; no verdict where the reward cannot be used at all."""

    verdict: Verdict | None
    detail: str = ""


class _Loaded:
    """The function of this process, or why there is none."""

    function: RewardFunction | None = None
    refusal = "the worker was not prepared"


def prepare_reward(name: str, digest: str) -> None:
    """Load a reward, once in each process, before the clock of its first call starts."""
    try:
        # A worker of a later day must not grade by a file that was changed under the run.
        require_digest(name, digest)
        _Loaded.function = RewardFunction(name)
    except ConfigError as error:
        _Loaded.refusal = str(error)
    confine()


def judge_in_time(submission: Submission, reward_range: tuple[float, float], timeout_seconds: float) -> Judged:
    """The reward of a submission; the kernel ends this process where it takes more processor time than that."""
    if _Loaded.function is None:
        return Judged(None, _Loaded.refusal)
    try:
        with limited(timeout_seconds):
            result = _Loaded.function(submission)
    except (Exception, SystemExit) as error:  # nothing that a model writes may cost a group
        return _failed("raised", f"{type(error).__name__}: {error}")
    return judged(result, reward_range)


def judged(result: object, reward_range: tuple[float, float]) -> Judged:
    """The verdict on what a reward has given: rounded to whole billionths, 0 where it is no reward of the range.

    Example: in the range 0 to 1, 0.25 is a verdict with reason `partial`, and 1.5 one of 0 with `out_of_range`.
    """
    low, high = reward_range
    given: object = result
    if isinstance(result, Verdict):
        given = float(result.correct) if result.reward is None else result.reward
    if not isinstance(given, Real):
        return _failed("no_number", f"{type(result).__name__} {result!r}")
    reward = float(given)
    if not math.isfinite(reward):
        return _failed("not_finite", f"{reward}")
    if not low <= reward <= high:
        return _failed("out_of_range", f"{reward}, grading.reward_range is {low:g} to {high:g}")
    reward = rounded_reward(reward)
    if isinstance(result, Verdict):
        extracted = None if result.extracted is None else str(result.extracted)
        return Judged(Verdict(bool(result.correct), extracted, quoted(result.reason, MAX_REASON), reward))
    reason: Reason = "full" if reward == high else "least" if reward == low else "partial"
    return Judged(Verdict(reward == high, None, reason, reward))


def _failed(reason: Reason, detail: str) -> Judged:
    return Judged(Verdict(False, None, reason, 0.0), quoted(detail))
