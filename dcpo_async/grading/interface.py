"""What grades the responses of a group."""

from collections.abc import Sequence
from typing import Protocol

from dcpo_async.grading.verdict import Verdict


class Grading(Protocol):
    """Grades without blocking the event loop."""

    async def grade_many(self, response_texts: Sequence[str], reference_answer: str) -> list[Verdict]:
        """The verdicts of several responses to one problem, in their order; raises GradingError."""

    def close(self) -> None:
        """Let go of whatever grades."""
