"""The problems that a run trains on: read, filtered, and none of them in a set that will measure the model."""

import logging
from dataclasses import replace
from pathlib import Path

from dcpo_async.config import GYM, DataSettings
from dcpo_async.errors import DatasetError
from dcpo_async.gym import gym_problems
from dcpo_async.prompts import LoadedProblems, load, overlaps, problem_source

log = logging.getLogger(__name__)


def training_problems(data: DataSettings, folder: Path | None = None) -> LoadedProblems:
    """What the settings of a run ask for; raises DatasetError where they refuse contaminated prompts and some are.

    Args:
        folder: keeps what is generated; None keeps none.
    """
    if data.source.startswith(GYM):
        return _without_evaluation(data, data.source, gym_problems(data, folder))
    source = problem_source(
        data.source,
        problem_field=data.problem_field,
        answer_field=data.answer_field,
        answer_pattern=data.answer_pattern,
        split=data.split,
        subset=data.subset,
        metadata_fields=data.metadata_fields,
    )
    return _without_evaluation(data, source.name, load(source, data.language, data.levels))


def _without_evaluation(data: DataSettings, name: str, loaded: LoadedProblems) -> LoadedProblems:
    texts = [problem.problem for problem in loaded.problems]
    contaminated: set[int] = set()
    where = []
    for evaluation in map(problem_source, data.evaluation):
        tested = [problem.problem for problem in load(evaluation).problems]
        found = overlaps(texts, tested)
        if found:
            where.append(f"{len({overlap.evaluation for overlap in found})} of the {len(tested)} of {evaluation.name}")
            contaminated.update(overlap.train for overlap in found)
    if not contaminated:
        return loaded
    summary = f"{len(contaminated)} of {len(texts)} prompts of {name} are problems of evaluation sets"
    if data.contamination == "refuse":
        raise DatasetError(
            f"{summary} ({', '.join(where)}); leave them out with --data.contamination drop, or train on them with "
            f"allow; `dcpo data check {data.source} {' '.join(data.evaluation)} --list` shows them"
        )
    log.warning("%s (%s): %s", summary, ", ".join(where), "left out" if data.contamination == "drop" else "trained on")
    if data.contamination == "allow":
        return loaded
    kept = tuple(problem for place, problem in enumerate(loaded.problems) if place not in contaminated)
    return replace(loaded, problems=kept, left_out={**loaded.left_out, "contaminated": len(contaminated)})
