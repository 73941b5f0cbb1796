"""Grades in worker processes that are killed when an answer takes too long."""

import asyncio
from collections.abc import Sequence

from dcpo_async.errors import GradingError
from dcpo_async.grading.extraction import Extraction
from dcpo_async.grading.grader import quick_verdict
from dcpo_async.grading.interface import Submission
from dcpo_async.grading.verdict import Verdict
from dcpo_async.grading.worker import grade_in_time, prepare
from dcpo_async.grading.workers import Ended, Workers


class GradingPool:
    """Grades responses without blocking the event loop, whatever a model may have written.

    Our own comparison, which takes bounded time, runs in-process. Only answers that need algebra go to the workers:
    `num_workers` spawned processes, each limited to 2 GiB of memory (on Linux) and killed once an answer has used
    `timeout_seconds` of processor time (or ten times that by the clock), so that no verdict depends on how busy the
    machine is.
    """

    def __init__(self, num_workers: int, timeout_seconds: float, extraction: Extraction = "boxed") -> None:
        self.extraction: Extraction = extraction
        needs = "that math-verify is installed, that memory is left"
        self._workers = Workers(num_workers, timeout_seconds, prepare, needs=needs)

    async def grade(self, response_text: str, reference_answer: str) -> Verdict:
        """The verdict of `grade`, or one with reason `timeout` or `crashed` where the answer was too much.

        Raises GradingError where the pool is closed or its workers cannot run at all.
        """
        if self._workers.is_closed:
            raise GradingError("the grading pool is closed; open a new one to grade more responses")
        verdict = quick_verdict(response_text, reference_answer, self.extraction)
        if verdict.reason != "undecided" or verdict.extracted is None:
            return verdict
        outcome = await self._workers.call(grade_in_time, verdict.extracted, reference_answer)
        return Verdict(False, verdict.extracted, outcome.reason) if isinstance(outcome, Ended) else outcome

    async def grade_many(self, response_texts: Sequence[str], reference_answer: str) -> list[Verdict]:
        """The verdicts of several responses to one problem, in their order."""
        return await asyncio.gather(*(self.grade(text, reference_answer) for text in response_texts))

    async def grade_all(self, submissions: Sequence[Submission]) -> list[Verdict]:
        """The verdicts of submissions, in their order."""
        return await asyncio.gather(*(self.grade(item.response, item.answer) for item in submissions))

    def close(self) -> None:
        """Kills the workers and returns once they are gone; answers in the making raise GradingError."""
        self._workers.close()
