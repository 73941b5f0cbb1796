"""What the grader found out about one response, and the reward that follows from it."""

from dataclasses import dataclass
from typing import Literal

from dcpo_async.config import GradingSettings

Reason = Literal[
    "equal",  # by our own comparison
    "equivalent",  # by symbolic comparison alone
    "different",
    "undecided",  # our own comparison cannot tell; never leaves `grade` or `GradingPool`
    "no_answer",
    "no_reference",
    "too_long",
    "not_text",
    "unparsable",
    "timeout",
    "crashed",
    "full",  # an own reward: the highest of its range
    "partial",
    "least",
    "raised",  # an own reward that raised, or gave what is none; it counts as 0
    "no_number",
    "not_finite",
    "out_of_range",
]
FAILURES = frozenset({"timeout", "crashed", "raised", "no_number", "not_finite", "out_of_range"})
"""Reasons of verdicts that say something about the grader: counted by kind."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The grader's judgement of one response.

    Attributes:
        correct: whether the answer found equals the reference.
        extracted: the answer as the response wrote it; None where no usable answer was found.
        reason: why, out of a small closed set, so that reasons can be counted; an own reward may have its own words.
        reward: of an own reward; None follows from the others.
    """

    correct: bool
    extracted: str | None
    reason: Reason | str
    reward: float | None = None


def highest_reward(grading: GradingSettings) -> float:
    """What a right response is worth: 1, or the highest of an own reward's range."""
    return 1.0 if grading.reward is None else grading.reward_range[1]


def reward_of(verdict: Verdict, format_penalty: float = 0.0) -> float:
    """Reward of a response: its own, else 1 if correct, else 0, less `format_penalty` where no answer was found.

    Example: a wrong answer is worth 0.0; no answer at all with a penalty of 0.5 is worth -0.5.
    """
    if verdict.reward is not None:
        return verdict.reward
    if verdict.extracted is None:
        return -format_penalty if format_penalty else 0.0
    return float(verdict.correct)
