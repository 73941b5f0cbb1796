"""Grades within this process: for answers that nobody wrote to do harm, such as those of a scripted engine."""

from collections.abc import Sequence

from dcpo_async.grading.extraction import Extraction
from dcpo_async.grading.grader import grade
from dcpo_async.grading.interface import Submission
from dcpo_async.grading.verdict import Verdict


class InlineGrading:
    """The verdicts of a `GradingPool`, without processes and without a time-out."""

    def __init__(self, extraction: Extraction = "boxed") -> None:
        self._extraction: Extraction = extraction

    async def grade_all(self, submissions: Sequence[Submission]) -> list[Verdict]:
        """The verdicts of submissions, in their order."""
        return [grade(item.response, item.answer, self._extraction) for item in submissions]

    def close(self) -> None:
        """Nothing to let go of."""
