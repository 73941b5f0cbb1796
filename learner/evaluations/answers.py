"""What the ledger keeps of an answer, and the results that are made of it. Pure."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from dcpo_async.config import GradingSettings
from dcpo_async.evaluation.results import GradedResponse, Mode, ProblemResult
from dcpo_async.grading import highest_reward
from dcpo_async.protocol.messages import GroupMessage
from dcpo_async.records import Prompt
from learner.ledger.reader import EvaluationRow


def answered(group: GroupMessage, seconds: float) -> dict[str, Any]:
    """What is kept of the responses to a problem, texts and tokens not among it.

    Args:
        seconds: since the evaluation began.
    """
    columns = ("rewards", "reasons", "lengths", "finish_reasons")
    return {**{name: list(getattr(group, name)) for name in columns}, "seconds": seconds}


def results_of(
    prompts: Sequence[tuple[str, Prompt]],
    found: Mapping[int, Mapping[str, Any]],
    mode: Mode,
    grading: GradingSettings,
    row: EvaluationRow,
) -> dict[str, list[ProblemResult]]:
    """The results by set, as figures are made of them.

    Args:
        prompts: set and prompt of each problem.
        found: what is kept of each of them.
        grading: a response is right where it has the highest reward.
        row: the evaluation.
    """
    best = highest_reward(grading)
    results: dict[str, list[ProblemResult]] = {}
    for number, (name, prompt) in enumerate(prompts):
        kept = found[number]
        columns = zip(kept["rewards"], kept["reasons"], kept["lengths"], kept["finish_reasons"], strict=True)
        responses = tuple(
            GradedResponse(
                mode=mode,
                index=index,
                seed=None,
                text="",
                extracted=None if reason == "no_answer" else "",
                correct=reward == best,
                reason=reason,
                num_tokens=length,
                finish_reason=finish_reason,
                reward=reward,
            )
            for index, (reward, reason, length, finish_reason) in enumerate(columns)
        )
        result = ProblemResult(
            id=prompt.id,
            problem=prompt.problem,
            answer=prompt.answer,
            responses=responses,
            weights_version=row.weights_version,
            step=row.step,
            elapsed_seconds=kept["seconds"],
        )
        results.setdefault(name, []).append(result)
    return results


def mean_rewards(prompts: Sequence[tuple[str, Prompt]], found: Mapping[int, Mapping[str, Any]]) -> dict[str, float]:
    """Mean reward of each set's responses."""
    rewards: dict[str, list[float]] = {}
    for number, (name, _) in enumerate(prompts):
        rewards.setdefault(name, []).extend(found[number]["rewards"])
    return {name: fmean(values) for name, values in rewards.items()}
