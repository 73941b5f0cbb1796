"""From a lease and its responses to what is graded, and from the verdicts to the group."""

from collections.abc import Sequence
from dataclasses import replace

from dcpo_async.grading.extraction import MAX_RESPONSE_CHARS
from dcpo_async.grading.extraction.thinking import last_characters
from dcpo_async.grading.interface import Submission
from dcpo_async.grading.verdict import Verdict, reward_of
from dcpo_async.records import Group, Lease, Response


def submissions(lease: Lease, responses: Sequence[Response]) -> list[Submission]:
    """What is graded: of each text as much as the learner keeps, so that grading again sees the same."""
    return [
        Submission(
            problem=lease.problem,
            answer=lease.answer,
            response=last_characters(response.text, MAX_RESPONSE_CHARS),
            finish_reason=response.finish_reason,
            num_tokens=len(response.token_ids),
            metadata=lease.metadata,
            source=lease.source,
        )
        for response in responses
    ]


def graded(lease: Lease, responses: Sequence[Response], verdicts: Sequence[Verdict], format_penalty: float) -> Group:
    """The group of a lease, with the reward and the reason of each response."""
    return Group(
        position=lease.position,
        attempt=lease.attempt,
        responses=tuple(
            replace(response, text=last_characters(response.text, MAX_RESPONSE_CHARS)) for response in responses
        ),
        rewards=tuple(reward_of(verdict, format_penalty) for verdict in verdicts),
        reasons=tuple(verdict.reason for verdict in verdicts),
    )
