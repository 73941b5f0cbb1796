"""Extracts and compares math answers; the only folder that imports sympy, math_verify and pebble."""

from dcpo_async.grading.extraction import MAX_RESPONSE_CHARS, Extraction, extract_answer
from dcpo_async.grading.grader import grade
from dcpo_async.grading.groups import graded, submissions
from dcpo_async.grading.inline import InlineGrading
from dcpo_async.grading.interface import Grading, Submission
from dcpo_async.grading.pool import GradingPool
from dcpo_async.grading.texts import ResponseTexts
from dcpo_async.grading.verdict import Reason, Verdict, highest_reward, reward_of

__all__ = [
    "MAX_RESPONSE_CHARS",
    "Extraction",
    "Grading",
    "GradingPool",
    "InlineGrading",
    "Reason",
    "ResponseTexts",
    "Submission",
    "Verdict",
    "extract_answer",
    "grade",
    "graded",
    "highest_reward",
    "reward_of",
    "submissions",
]
