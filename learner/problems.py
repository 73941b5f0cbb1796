"""The problems that a run trains on: read, filtered, each in one source, none of them in an evaluation set."""

import logging
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dcpo_async.config import GYM, DataSettings, SourceSettings
from dcpo_async.errors import ConfigError, DatasetError
from dcpo_async.gym import gym_problems
from dcpo_async.limits import MAX_WORDS
from dcpo_async.prompts import LoadedProblems, Problem, load, overlaps, problem_source

log = logging.getLogger(__name__)

_NOT_IN_NAMES = re.compile(r"[^\w.-]")


@dataclass(frozen=True, slots=True)
class SourceProblems:
    """What one source gives to a run.

    Attributes:
        name: what metrics and messages call it.
        settings: of the source.
        loaded: its problems; none of them is one of an earlier source.
    """

    name: str
    settings: SourceSettings
    loaded: LoadedProblems


@dataclass(frozen=True, slots=True)
class TrainingProblems:
    """The problems of a run by their sources."""

    sources: tuple[SourceProblems, ...]

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All of them, source by source."""
        return tuple(problem for source in self.sources for problem in source.loaded.problems)

    @property
    def num_rows(self) -> int:
        """Rows read of all sources."""
        return sum(source.loaded.num_rows for source in self.sources)

    @property
    def left_out(self) -> dict[str, int]:
        """Rows of all sources that are no problems, by reason."""
        return dict(sum((Counter(source.loaded.left_out) for source in self.sources), Counter[str]()))


def with_names(data: DataSettings) -> DataSettings:
    """The settings with the name of each of several sources.

    Raises ConfigError where two have one name, or a source names no problems.
    """
    sources = tuple(source.model_copy(update={"name": _name(source)}) for source in data.sources)
    twice = [name for name, count in Counter(source.name for source in sources).items() if count > 1]
    if twice:
        raise ConfigError(f"data.sources: two are called {twice[0]}; give one of them another name")
    return data.model_copy(update={"sources": sources})


def training_problems(data: DataSettings, folder: Path | None = None) -> TrainingProblems:
    """What the settings of a run ask for.

    Args:
        folder: keeps what is generated; None keeps none.

    Raises ConfigError where two sources have one name; DatasetError where a source gives no problem, and where the
    settings refuse contaminated prompts and some are.
    """
    sources = [_loaded(settings, folder) for settings in with_names(data).each_source]
    return TrainingProblems(tuple(_without_contaminated(data, _in_one_source(sources))))


def _name(settings: SourceSettings) -> str:
    """As it is given; else a task's, a preset's, or the last part of a folder or an id on the hub, in plain letters."""
    if settings.name is not None:
        return settings.name
    if settings.source.startswith(GYM):
        found = settings.source.removeprefix(GYM)
    else:
        found = problem_source(settings.source).name.rstrip("/").rpartition("/")[2]
    return _NOT_IN_NAMES.sub("_", found)[:MAX_WORDS] or "_"


def _loaded(settings: SourceSettings, folder: Path | None) -> SourceProblems:
    name = _name(settings)
    if settings.source.startswith(GYM):
        return SourceProblems(name, settings, gym_problems(settings, folder))
    source = problem_source(
        settings.source,
        problem_field=settings.problem_field,
        answer_field=settings.answer_field,
        answer_pattern=settings.answer_pattern,
        split=settings.split,
        subset=settings.subset,
        metadata_fields=settings.metadata_fields,
    )
    return SourceProblems(name, settings, load(source, settings.language, settings.levels))


def _in_one_source(sources: Sequence[SourceProblems]) -> list[SourceProblems]:
    """Every problem in the first source that has it; those about whose answer sources disagree in none."""
    first: dict[str, str] = {}
    conflicting: set[str] = set()
    for source in sources:
        for problem in source.loaded.problems:
            if first.setdefault(problem.problem, problem.answer) != problem.answer:
                conflicting.add(problem.problem)
    earlier: set[str] = set()
    kept = []
    for source in sources:
        texts = {problem.problem for problem in source.loaded.problems}
        kept.append(_without(source, texts & conflicting, "conflicting with another source"))
        kept[-1] = _without(kept[-1], (texts & earlier) - conflicting, "in an earlier source")
        earlier |= texts
    return kept


def _without(source: SourceProblems, texts: Collection[str], reason: str) -> SourceProblems:
    """A source without some of its problems, which are counted."""
    if not texts:
        return source
    loaded = source.loaded
    kept = tuple(problem for problem in loaded.problems if problem.problem not in texts)
    left_out = {**loaded.left_out, reason: len(texts)}
    if not kept:
        reasons = ", ".join(f"{number} {why}" for why, number in left_out.items() if number)
        raise DatasetError(f"source {source.name}: none of its {loaded.num_rows} rows is left ({reasons}); take it out")
    return replace(source, loaded=replace(loaded, problems=kept, left_out=left_out))


def _without_contaminated(data: DataSettings, sources: Sequence[SourceProblems]) -> Sequence[SourceProblems]:
    """Raises DatasetError where the settings refuse contaminated prompts and some are."""
    texts = [problem.problem for source in sources for problem in source.loaded.problems]
    contaminated: set[int] = set()
    where = []
    for evaluation in map(problem_source, data.evaluation):
        tested = [problem.problem for problem in load(evaluation).problems]
        found = overlaps(texts, tested)
        if found:
            where.append(f"{len({overlap.evaluation for overlap in found})} of the {len(tested)} of {evaluation.name}")
            contaminated.update(overlap.train for overlap in found)
    if not contaminated:
        return sources
    names = ", ".join(source.name for source in sources)
    summary = f"{len(contaminated)} of {len(texts)} prompts of {names} are problems of evaluation sets"
    if data.contamination == "refuse":
        shown = "; ".join(
            f"`dcpo data check {source.settings.source} {' '.join(data.evaluation)} --list`" for source in sources
        )
        raise DatasetError(
            f"{summary} ({', '.join(where)}); leave them out with --data.contamination drop, or train on them with "
            f"allow; {shown} shows them"
        )
    log.warning("%s (%s): %s", summary, ", ".join(where), "left out" if data.contamination == "drop" else "trained on")
    if data.contamination == "allow":
        return sources
    unwanted = {texts[place] for place in contaminated}
    own = [unwanted & {problem.problem for problem in source.loaded.problems} for source in sources]
    return [_without(source, found, "contaminated") for source, found in zip(sources, own, strict=True)]
