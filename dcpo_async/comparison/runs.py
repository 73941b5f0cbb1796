"""What a comparison reads: run folders, and the evaluations that measured their weights."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from dcpo_async.comparison.figures import Curve, Measured
from dcpo_async.config import RunConfig
from dcpo_async.config.live import changed_settings
from dcpo_async.errors import ConfigError
from dcpo_async.evaluation.figures import Figures
from dcpo_async.evaluation.results import SETTINGS_NAME, SUMMARY_NAME, Mode
from dcpo_async.evaluation.table import Row
from dcpo_async.metrics.health import set_by_then, told_changes
from dcpo_async.metrics.jsonl import read_metrics
from dcpo_async.run_folder import RunFolder

Cost = Literal["steps", "responses", "tokens", "seconds"]
T = TypeVar("T")

COST_METRICS = {"responses": "generated_responses", "tokens": "generated_tokens", "seconds": "seconds"}
"""Where a metrics line has a run's cost so far."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Held-out accuracy of one weights version of a run.

    Attributes:
        step: optimizer steps behind the weights.
        problems, samples: their number, and the responses to each.
        accuracy: share of right responses, with the evaluation's interval over problems.
        settings: what shaped the measurement, such as temperature and the digest of the problems, by name.
        source: evaluation folder and model name, for people.
    """

    set: str
    mode: Mode
    step: int
    weights_version: int
    problems: int
    samples: int
    accuracy: Measured
    settings: dict[str, str]
    folder: Path
    source: str


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """A run as its folder tells it.

    Attributes:
        name: of its configuration; the runs of one name are its seeds.
        metrics: one entry for each optimizer step, in step order; at least one.
        held_out: by set, mode and step, each step once.
        notes: what a reader of its figures has to know.
    """

    name: str
    folder: Path
    run_id: str
    is_finished: bool
    config: RunConfig
    metrics: tuple[dict[str, float], ...]
    held_out: tuple[HeldOut, ...]
    notes: tuple[str, ...]

    @property
    def label(self) -> str:
        """Name and run id: what tells it from the other runs of its name."""
        return f"{self.name} ({self.run_id})"

    @property
    def last_step(self) -> int:
        """Its newest optimizer step."""
        return int(self.metrics[-1]["step"])

    def cost(self, step: int, cost: Cost) -> float | None:
        """What the run had spent when it ended a step: steps, responses, tokens or seconds.

        Responses and tokens are those that actors generated, discarded ones included. None where the metrics have no
        line of the step, or the line does not say; step 0 has cost nothing, but in a run that never says.
        """
        if cost == "steps":
            return float(step)
        key = COST_METRICS[cost]
        if step == 0 and any(key in line for line in self.metrics):
            return 0.0
        return next((float(line[key]) for line in self.metrics if line["step"] == step and key in line), None)

    def metric(self, key: str, last_step: int | None = None) -> Curve:
        """A metric over optimizer steps, up to a last one; steps without a finite value are left out."""
        points = [
            (line["step"], line[key])
            for line in self.metrics
            if math.isfinite(line.get(key, math.nan)) and (last_step is None or line["step"] <= last_step)
        ]
        return Curve(tuple(x for x, _ in points), tuple(Measured(value) for _, value in points))

    def accuracy(self, set_name: str, mode: Mode, cost: Cost = "steps") -> Curve:
        """Held-out accuracy over what the run had spent; versions whose cost is unknown are left out."""
        measured = [point for point in self.held_out if (point.set, point.mode) == (set_name, mode)]
        points = [(x, point.accuracy) for point in measured if (x := self.cost(point.step, cost)) is not None]
        return Curve(tuple(x for x, _ in points), tuple(value for _, value in points))


class _Status(BaseModel):
    run_id: str
    is_finished: bool = False
    step: int = 0
    settings_set: list[dict[str, Any]] = []


class _Model(BaseModel):
    """An entry of an evaluation's summary; a model that is no version of a run has neither run nor step."""

    run: str | None = None
    weights_version: int | None
    step: int | None
    sets: dict[str, Row]


_SUMMARY = TypeAdapter(dict[str, _Model])
_SETTINGS = TypeAdapter(dict[str, Any])


def read_run(name: str, folder: Path, evaluations: Sequence[Path] = ()) -> ComparedRun:
    """Read a run and what was measured of it.

    Args:
        name: of its configuration.
        folder: of the run, finished or not.
        evaluations: folders that `dcpo eval` wrote, besides FOLDER/evaluation; entries of other runs are passed over.

    Raises ConfigError for a folder of something else, a run without a finished step, and an evaluation that cannot be
    read.
    """
    advice = "name the folder of a run that has been started"
    status = _read(RunFolder(folder).status, _Status.model_validate_json, advice)
    said = status.model_dump()
    started = _read(RunFolder(folder).config, RunConfig.model_validate_json, advice)
    config = changed_settings(started, set_by_then(said))
    try:
        metrics = tuple(read_metrics(folder))
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ConfigError(
            f"{folder}/metrics.jsonl cannot be read ({error!r}); restore it or leave the run out"
        ) from None
    if not metrics:
        raise ConfigError(f"{folder}: no optimizer step is finished yet; wait for the first, or leave the run out")
    own = [path for path in (RunFolder(folder).evaluation,) if (path / SUMMARY_NAME).exists()]
    points = [point for path in _distinct([*own, *evaluations]) for point in _held_out(path, status.run_id)]
    held_out, notes = _newest(points)
    notes += [f"set while it went on: {change}" for change in told_changes(said)]
    return ComparedRun(name, folder, status.run_id, status.is_finished, config, metrics, held_out, tuple(notes))


def read_runs(words: Sequence[str], evaluations: Sequence[Path] = ()) -> list[ComparedRun]:
    """Read runs named [NAME=]FOLDER; without a name a run is called by its folder.

    Raises ConfigError as `read_run` does, for a name or folder that is not UTF-8, and where a run comes twice or a name
    comes twice that was not given.
    """
    for folder in evaluations:
        check_text(str(folder))
    runs: list[ComparedRun] = []
    is_given: dict[str, bool] = {}
    for word in words:
        given, location = _name_and_folder(word)
        name = Path(location).resolve().name if given is None else given
        check_text(word)
        check_text(name)
        if not name.strip():
            raise ConfigError(f"run {word!r} has an empty name; write NAME=FOLDER")
        if name in is_given and (given is None or not is_given[name]):
            raise ConfigError(
                f"two runs are called {name}; write NAME=FOLDER, with one NAME for the seeds of a configuration and "
                "another for another configuration"
            )
        is_given[name] = given is not None
        run = read_run(name, Path(location), evaluations)
        same = next((other for other in runs if other.run_id == run.run_id), None)
        if same is not None:
            raise ConfigError(f"{same.folder} and {run.folder} are the same run, {run.run_id}; name it once")
        runs.append(run)
    return runs


def check_text(text: str) -> None:
    """Raise ConfigError for a name that is not UTF-8, as a file's may be: no report and no terminal could show it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{text!r} is not UTF-8 and cannot be shown in a report; give it another name") from None


def _name_and_folder(word: str) -> tuple[str | None, str]:
    """What [NAME=]FOLDER says; names and folders may hold = too, so that FOLDER is the longest ending that is one."""
    splits = [(None, word), *((word[:at], word[at + 1 :]) for at, sign in enumerate(word) if sign == "=")]
    return next((split for split in splits if _is_folder(split[1])), splits[-1])


def _is_folder(location: str) -> bool:
    try:
        return Path(location).is_dir()
    except OSError:
        return False


def _held_out(folder: Path, run_id: str) -> list[HeldOut]:
    """What an evaluation has measured of a run."""
    advice = "name a folder in which dcpo eval measured a model"
    summary = _read(folder / SUMMARY_NAME, _SUMMARY.validate_json, advice)
    settings = _read(folder / SETTINGS_NAME, _SETTINGS.validate_json, advice)
    return [
        HeldOut(
            set=row.set,
            mode=mode,
            step=model.step,
            weights_version=model.weights_version,
            problems=row.problems,
            samples=figures.samples,
            accuracy=Measured(figures.accuracy.mean, figures.accuracy.low, figures.accuracy.high),
            settings=_settings_of(settings, row.set),
            folder=folder,
            source=f"{folder}: {name}",
        )
        for name, model in summary.items()
        if model.run == run_id and model.step is not None and model.weights_version is not None
        for row in model.sets.values()
        for mode, figures in _figures(row)
    ]


def _settings_of(settings: dict[str, Any], set_name: str) -> dict[str, str]:
    """What shaped the figures on a set: nothing of the models, and nothing of other sets."""
    names = [name for name in settings if not name.startswith(("model ", "version ", "set ")) and name != "run"]
    own = f"set {set_name}"
    return {name: str(settings[name]) for name in [*names, own] if name in settings}


def _figures(row: Row) -> Iterable[tuple[Mode, Figures]]:
    both: tuple[tuple[Mode, Figures | None], ...] = (("greedy", row.greedy), ("sampled", row.sampled))
    return [(mode, figures) for mode, figures in both if figures is not None]


def _newest(points: Sequence[HeldOut]) -> tuple[tuple[HeldOut, ...], list[str]]:
    """Each step once, in order; of several measurements that of the newest weights version, then the one named last."""
    kept: dict[tuple[str, Mode, int], HeldOut] = {}
    notes = []
    for point in points:
        key = (point.set, point.mode, point.step)
        earlier = kept.get(key)
        if earlier is None or point.weights_version >= earlier.weights_version:
            kept[key] = point
        if earlier is not None:
            notes.append(
                f"step {point.step} was measured more than once on {point.set}, {point.mode} "
                f"({earlier.source}; {point.source}); {kept[key].source} counts"
            )
    return tuple(kept[key] for key in sorted(kept)), notes


def _distinct(folders: Iterable[Path]) -> list[Path]:
    """Folders that were named twice, once."""
    return list({folder.resolve(): folder for folder in folders}.values())


def _read(path: Path, parse: Callable[[bytes], T], advice: str) -> T:
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); {advice}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise ConfigError(f"{path} is not what it should be ({where}: {first['msg']}); {advice}") from None
