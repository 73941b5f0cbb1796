"""Grades within this process: for answers that nobody wrote to do harm, such as those of a scripted engine."""

from collections.abc import Sequence

from dcpo_async.grading.extraction import Extraction
from dcpo_async.grading.grader import grade
from dcpo_async.grading.verdict import Verdict


class InlineGrading:
    """The verdicts of a `GradingPool`, without processes and without a time-out."""

    def __init__(self, extraction: Extraction = "boxed") -> None:
        self._extraction: Extraction = extraction

    async def grade_many(self, response_texts: Sequence[str], reference_answer: str) -> list[Verdict]:
        """The verdicts of several responses to one problem, in their order."""
        return [grade(text, reference_answer, self._extraction) for text in response_texts]

    def close(self) -> None:
        """Nothing to let go of."""
