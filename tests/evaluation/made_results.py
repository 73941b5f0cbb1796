"""Results made by hand."""

from dcpo_async.evaluation.results import GradedResponse, Mode, ProblemResult


def response(
    correct: bool, *, mode: Mode = "sampled", num_tokens: int = 10, extracted: str | None = "7", truncated: bool = False
) -> GradedResponse:
    return GradedResponse(
        mode=mode,
        index=0,
        seed=None if mode == "greedy" else 1,
        text=f"\\boxed{{{extracted}}}",
        extracted=extracted,
        correct=correct,
        reason="equal" if correct else "different",
        num_tokens=num_tokens,
        finish_reason="length" if truncated else "stop",
    )


def result(id: str, *responses: GradedResponse) -> ProblemResult:
    return ProblemResult(
        id=id, problem="3+4=", answer="7", responses=responses, weights_version=None, step=None, elapsed_seconds=1.5
    )
