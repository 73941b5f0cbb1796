"""Figures of a model on problem sets, from graded responses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from dcpo_async.evaluation.results import GradedResponse, Mode, ProblemResult
from dcpo_async.evaluation.statistics import Estimate, bootstrap_estimate, pass_at_k, sizes_of_k

BOOTSTRAP_SEED = 0


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured in one mode; each figure is a mean over sets of the mean over their problems.

    Attributes:
        samples: n, responses to each problem.
        accuracy: Avg@n, the share of right responses, with its 95 % interval over problems.
        pass_at: pass@k by k, for k = 1, 2, 4, … and n.
        response_length: tokens of a response, the stop token included.
        truncated: share of responses that were cut at the longest length.
        no_answer: share of responses in which no answer was found.
    """

    samples: int
    accuracy: Estimate
    pass_at: dict[int, float]
    response_length: float
    truncated: float
    no_answer: float


def figures_of(sets: Sequence[Sequence[ProblemResult]], mode: Mode) -> Figures | None:
    """Figures of one mode over one set, or their average over several; None where nothing was generated in it."""
    answers = [[[r for r in result.responses if r.mode == mode] for result in results] for results in sets]
    if not answers[0][0]:
        return None
    samples = len(answers[0][0])
    right = [[sum(r.correct for r in responses) for responses in problems] for problems in answers]
    accuracy = bootstrap_estimate([[count / samples for count in counts] for counts in right], BOOTSTRAP_SEED)
    return Figures(
        samples=samples,
        accuracy=accuracy,
        pass_at={
            k: fmean(fmean(pass_at_k(samples, count, k) for count in counts) for counts in right)
            for k in sizes_of_k(samples)
        },
        response_length=_mean(answers, lambda response: response.num_tokens),
        truncated=_mean(answers, lambda response: response.finish_reason == "length"),
        no_answer=_mean(answers, lambda response: response.extracted is None),
    )


def _mean(sets: Sequence[Sequence[Sequence[GradedResponse]]], value: Callable[[GradedResponse], float]) -> float:
    return fmean(fmean(value(r) for responses in problems for r in responses) for problems in sets)
