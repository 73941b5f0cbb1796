"""What grades the responses of a group."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from dcpo_async.grading.verdict import Verdict
from dcpo_async.records import FinishReason


class Submission(NamedTuple):
    """One response, and all that a reward may depend on.

    Attributes:
        problem: as the data set has it; empty for the built-in grader, which does not look at it.
        answer: the reference answer.
        response: its text, of a very long one the end that is kept.
        finish_reason: "stop" or "length".
        num_tokens: of the response.
        metadata: what the row brings with it, a JSON object; empty for none.
        source: name of the problem's source; "" where the run has one.
    """

    problem: str
    answer: str
    response: str
    finish_reason: FinishReason
    num_tokens: int
    metadata: str = ""
    source: str = ""


class Grading(Protocol):
    """Grades without blocking the event loop."""

    async def grade_all(self, submissions: Sequence[Submission]) -> list[Verdict]:
        """The verdicts of submissions, in their order; raises GradingError."""

    def close(self) -> None:
        """Let go of whatever grades."""
