"""What a comparison says in numbers: a row for each configuration, and notes on what its reader has to know."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from dcpo_async.comparison.figures import (
    LEAST_RUNS,
    Curve,
    Measured,
    across_enough_runs,
    difference,
    mean_curve,
    value_at,
)
from dcpo_async.comparison.runs import COST_METRICS, ComparedRun, Cost, HeldOut
from dcpo_async.errors import ConfigError
from dcpo_async.evaluation.results import Mode

METRICS = {
    "reward": "reward",
    "rur": "RUR",
    "rur_later": "RUR of later visits",
    "advantage_abs_mean": "mean |Â|",
    "tcr": "TCR",
    "entropy": "entropy",
    "response_length": "response length",
    "lag_mean": "lag",
}
"""What is compared of a run's metrics, by key."""
LATE_SHARE = 0.1
"""Of the steps, over which the reward at the end is averaged."""
MAY_BEGIN_LATE = {"rur_later"}
SHOWN_SECTIONS = ("algorithm.", "lag.")
WITHOUT_EFFECT = ("folder", "seed", "network.", "checkpoint.", "lag.keep_versions", "model.gradient_checkpointing")


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Which held-out accuracy is compared, and where configurations are compared at equal cost.

    Attributes:
        step: the largest optimizer step that every measured run reaches in its evaluations.
        responses: the largest number of generated responses that they all reach; None where it is unknown.
    """

    set: str
    mode: Mode
    step: int
    responses: float | None


@dataclass(frozen=True, slots=True)
class Row:
    """A configuration: its figures are means over its runs with Student's interval; None where nothing was measured.

    Attributes:
        settings: those of [algorithm] and [lag] that differ between configurations, by name.
        steps: of each run.
        responses_per_step, tokens, seconds: what the whole runs took.
        best: the highest accuracy of each run.
        metrics: by the keys of METRICS, each the mean over the optimizer steps that all runs have.
        reward_difference, accuracy_difference: from the first configuration: of the mean reward over the last tenth of
            the steps that all runs have, and of the held-out accuracy at equal steps; None of the first itself.
    """

    name: str
    runs: tuple[ComparedRun, ...]
    settings: dict[str, str]
    steps: tuple[int, ...]
    responses_per_step: Measured | None
    tokens: Measured | None
    seconds: Measured | None
    final: Measured | None
    best: Measured | None
    at_equal_steps: Measured | None
    at_equal_responses: Measured | None
    metrics: dict[str, Measured | None]
    reward_difference: Measured | None = None
    accuracy_difference: Measured | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Configurations side by side.

    Attributes:
        accuracy: None where no run has a held-out accuracy.
        last_common_step: the largest optimizer step that every run has trained.
    """

    rows: tuple[Row, ...]
    accuracy: Accuracy | None
    last_common_step: int
    notes: tuple[str, ...]


def compared(
    runs: Sequence[ComparedRun],
    *,
    evaluations: Sequence[Path] = (),
    set_name: str | None = None,
    mode: Mode | None = None,
) -> Comparison:
    """Compare runs.

    Args:
        runs: at least one; those of one name are the seeds of a configuration.
        evaluations: as they were given to `read_run`; one that measured none of the runs is noted.
        set_name: of the held-out problems; may be left out where one set was measured.
        mode: of the responses; None takes sampled ones where there are any.

    Raises ConfigError where what was asked for was not measured, or several sets were and none is named.
    """
    accuracy = _accuracy(runs, set_name, mode)
    last_step = min(run.last_step for run in runs)
    by_name = {run.name: tuple(other for other in runs if other.name == run.name) for run in runs}
    settings = _differing([members[0] for members in by_name.values()])
    shown = {key: values for key, values in settings.items() if key.startswith(SHOWN_SECTIONS)}
    first = next(iter(by_name.values()))
    rows = [
        _row(members, {key: values[place] for key, values in shown.items()}, accuracy, last_step, first)
        for place, members in enumerate(by_name.values())
    ]
    notes = [
        *_notes_on_settings(by_name, settings),
        *(f"{run.label}: {note}" for run in runs for note in _notes_on_run(run)),
        *_notes_on_number(by_name),
        *_notes_on_length(by_name),
        *_notes_on_accuracy(runs, accuracy),
        *_notes_on_evaluations(runs, evaluations),
    ]
    return Comparison(tuple(rows), accuracy, last_step, tuple(notes))


def accuracy_curves(runs: Sequence[ComparedRun], accuracy: Accuracy, cost: Cost) -> list[Curve]:
    """Held-out accuracy over what a run had spent, of each run that was measured; empty where that is unknown."""
    measured = [run for run in runs if run.accuracy(accuracy.set, accuracy.mode).x]
    return [run.accuracy(accuracy.set, accuracy.mode, cost) for run in measured]


def mean_accuracy(runs: Sequence[ComparedRun], accuracy: Accuracy, cost: Cost) -> Curve:
    """Held-out accuracy of a configuration: at each step at which a run was measured and all have a value, the mean of
    the values over the mean of what the runs had spent by then; steps whose cost is unknown are left out."""
    measured = [run for run in runs if run.accuracy(accuracy.set, accuracy.mode).x]
    by_steps = mean_curve(accuracy_curves(runs, accuracy, "steps"))
    points = []
    for step, value in zip(by_steps.x, by_steps.values, strict=True):
        costs = [spent for run in measured if (spent := run.cost(int(step), cost)) is not None]
        if len(costs) == len(measured):
            points.append((fmean(costs), value))
    return Curve(tuple(x for x, _ in points), tuple(value for _, value in points))


# ---- figures


def _accuracy(runs: Sequence[ComparedRun], set_name: str | None, mode: Mode | None) -> Accuracy | None:
    points = [point for run in runs for point in run.held_out]
    if not points and set_name is None:
        return None
    sets = sorted({point.set for point in points})
    if set_name is None and len(sets) > 1:
        raise ConfigError(f"several sets were measured: {', '.join(sets)}; choose one with --set")
    name = set_name or sets[0]
    modes = {point.mode for point in points if point.set == name}
    chosen: Mode = mode or ("sampled" if "sampled" in modes else "greedy")
    if chosen not in modes:
        found = ", ".join(sorted({f"--set {point.set} --mode {point.mode}" for point in points}))
        asked = f"--set {name}" + (f" --mode {mode}" if mode else "")
        raise ConfigError(f"{asked}: no version of these runs was measured so; there are {found or 'no measurements'}")
    ends = [
        [curve.x[-1] for run in runs if (curve := run.accuracy(name, chosen, cost)).x]
        for cost in ("steps", "responses")
    ]
    return Accuracy(name, chosen, step=int(min(ends[0])), responses=min(ends[1], default=None))


def _row(
    runs: tuple[ComparedRun, ...],
    settings: dict[str, str],
    accuracy: Accuracy | None,
    last_common_step: int,
    first: tuple[ComparedRun, ...],
) -> Row:
    by_steps = accuracy_curves(runs, accuracy, "steps") if accuracy else []
    curves = [curve.values for curve in by_steps]
    responses = _costs(runs, "responses")
    return Row(
        name=runs[0].name,
        runs=runs,
        settings=settings,
        steps=tuple(run.last_step for run in runs),
        responses_per_step=_mean([spent / run.last_step for run, spent in zip(runs, responses, strict=True)])
        if responses
        else None,
        tokens=_mean(_costs(runs, "tokens")),
        seconds=_mean(_costs(runs, "seconds")),
        final=_mean_of([values[-1] for values in curves]),
        best=_mean_of([max(values, key=lambda value: value.mean) for values in curves]),
        at_equal_steps=_of_enough(runs, value_at(by_steps, accuracy.step)) if accuracy else None,
        at_equal_responses=_of_enough(runs, value_at(accuracy_curves(runs, accuracy, "responses"), accuracy.responses))
        if accuracy and accuracy.responses is not None
        else None,
        metrics={key: _mean_metric(runs, key, last_common_step) for key in METRICS},
        reward_difference=_difference(runs, first, lambda run: _late_reward(run, last_common_step)),
        accuracy_difference=_difference(runs, first, lambda run: _accuracy_at(run, accuracy)) if accuracy else None,
    )


def _of_enough(runs: Sequence[ComparedRun], value: Measured | None) -> Measured | None:
    """A single run keeps the interval of its evaluation; a few have none that says anything."""
    return Measured(value.mean) if value is not None and 1 < len(runs) < LEAST_RUNS else value


def _difference(
    runs: Sequence[ComparedRun], first: Sequence[ComparedRun], value: Callable[[ComparedRun], float | None]
) -> Measured | None:
    """From the first configuration; by seed, where both have the same ones."""
    own, other = ({run.config.seed: value(run) for run in side} for side in (runs, first))
    is_paired = own.keys() == other.keys() and len(own) == len(runs) == len(first)
    seeds = sorted(own)
    values = [own[seed] for seed in seeds] if is_paired else [value(run) for run in runs]
    others = [other[seed] for seed in seeds] if is_paired else [value(run) for run in first]
    known = [found for found in values if found is not None], [found for found in others if found is not None]
    if runs is first or len(known[0]) < len(values) or len(known[1]) < len(others):
        return None
    return difference(*known, is_paired=is_paired)


def _late_reward(run: ComparedRun, last_step: int) -> float | None:
    values = [value.mean for value in run.metric("reward", last_step).values]
    return fmean(values[-max(1, round(LATE_SHARE * len(values))) :]) if values else None


def _accuracy_at(run: ComparedRun, accuracy: Accuracy) -> float | None:
    found = run.accuracy(accuracy.set, accuracy.mode).at(accuracy.step)
    return None if found is None else found.mean


def _costs(runs: Sequence[ComparedRun], cost: Cost) -> list[float]:
    """What each run took as a whole; nothing where that is unknown of one of them."""
    costs = [run.cost(run.last_step, cost) for run in runs]
    known = [value for value in costs if value is not None]
    return known if len(known) == len(costs) else []


def _mean(values: Sequence[float]) -> Measured | None:
    return across_enough_runs(values) if values else None


def _mean_of(values: Sequence[Measured]) -> Measured | None:
    """Across runs; a single run keeps the interval of its evaluation."""
    return values[0] if len(values) == 1 else _mean([value.mean for value in values])


def _mean_metric(runs: Sequence[ComparedRun], key: str, last_step: int) -> Measured | None:
    curves = [run.metric(key, last_step) for run in runs]
    if not all(curve.x for curve in curves):
        return None
    return across_enough_runs([fmean(value.mean for value in curve.values) for curve in curves])


# ---- notes


def _differing(runs: Sequence[ComparedRun]) -> dict[str, list[str]]:
    """Settings in which runs differ, by dotted name, with the value of each run; those without effect are left out."""
    flat = [dict(_flat(run.config.model_dump(mode="json"))) for run in runs]
    return {
        key: [str(values.get(key)) for values in flat]
        for key in dict.fromkeys(key for values in flat for key in values)
        if not key.startswith(WITHOUT_EFFECT) and any(values.get(key) != flat[0].get(key) for values in flat)
    }


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _notes_on_settings(by_name: dict[str, tuple[ComparedRun, ...]], settings: dict[str, list[str]]) -> Iterator[str]:
    for key, values in settings.items():
        if not key.startswith(SHOWN_SECTIONS):
            yield f"configurations differ in {key} too: {_by_name(list(by_name), values)}"
    beside_the_seed: dict[tuple[str, str], list[str]] = {}
    for name, members in by_name.items():
        for key, values in _differing(members).items():
            beside_the_seed.setdefault((key, ", ".join(values)), []).append(name)
    for (key, found), names in beside_the_seed.items():
        yield f"runs of {', '.join(names)} are no mere seeds of one configuration, they differ in {key}: {found}"
    for name, members in by_name.items():
        seeds = [run.config.seed for run in members]
        if len(set(seeds)) < len(seeds):
            yield f"runs of {name} share a seed ({', '.join(map(str, seeds))}): the interval takes them for independent"


def _notes_on_run(run: ComparedRun) -> Iterator[str]:
    yield from run.notes
    if not run.is_finished:
        yield f"not finished: the figures are those of its first {run.last_step} steps"
    for key, title in METRICS.items():
        missing = len(run.metrics) - len(run.metric(key).x)
        if missing == len(run.metrics):
            is_early = key in MAY_BEGIN_LATE and all(line.get("visit_mean") == 1 for line in run.metrics)
            yield f"no {title}: {'no prompt has been visited twice' if is_early else 'the metrics lack it'}"
        elif missing and key not in MAY_BEGIN_LATE:
            yield f"{title} is missing in {missing} of {len(run.metrics)} steps"
    yield from _notes_on_cost(run)


def _notes_on_cost(run: ComparedRun) -> Iterator[str]:
    lacking = [key for key in COST_METRICS.values() if any(key not in line for line in run.metrics)]
    if lacking:
        yield (
            f"steps lack {', '.join(lacking)}, as in runs that an earlier release began: that cost is unknown, and "
            "seconds may leave out earlier starts of the learner"
        )
    steps = sorted({point.step for point in run.held_out} - {0} - {int(line["step"]) for line in run.metrics})
    if steps:
        yield f"measured at steps that its metrics lack ({', '.join(map(str, steps))}): their cost is unknown"


def _notes_on_number(by_name: dict[str, tuple[ComparedRun, ...]]) -> Iterator[str]:
    few = [f"{name} ({len(runs)})" for name, runs in by_name.items() if len(runs) < LEAST_RUNS]
    if few and len(by_name) > 1:
        yield f"fewer than {LEAST_RUNS} seeds give no interval over seeds, and no band: {', '.join(few)}"


def _notes_on_length(by_name: dict[str, tuple[ComparedRun, ...]]) -> Iterator[str]:
    for name, members in by_name.items():
        steps = [run.last_step for run in members]
        if len(set(steps)) > 1:
            yield f"runs of {name} are of {', '.join(map(str, steps))} steps: its curves end where the shortest does"
    lengths = {name: max(run.last_step for run in members) for name, members in by_name.items()}
    if len(set(lengths.values())) > 1:
        found = _by_name(list(lengths), [str(steps) for steps in lengths.values()])
        yield f"configurations were trained for different numbers of steps: {found}"


def _notes_on_accuracy(runs: Sequence[ComparedRun], accuracy: Accuracy | None) -> Iterator[str]:
    if accuracy is None:
        yield (
            "no held-out accuracy: no evaluation of these runs was found; measure stored versions with "
            "`dcpo eval RUN/weights/vNNNNNNNN --data SET --out DIR` and name DIR with --evaluation"
        )
        return
    points = {run.label: _points(run, accuracy) for run in runs}
    for label in (label for label, found in points.items() if not found):
        yield f"{label} has no held-out accuracy on {accuracy.set}, {accuracy.mode}: it is left out there"
    every = [
        {**point.settings, "number of problems": str(point.problems)} for found in points.values() for point in found
    ]
    for name in dict.fromkeys(name for settings in every for name in settings):
        values = dict.fromkeys(settings.get(name, "none") for settings in every)
        if len(values) > 1:
            yield f"versions were measured with different settings: {name} {', '.join(values)}"
    measured = {label: {point.step for point in found} for label, found in points.items() if found}
    without = [label for label, steps in measured.items() if accuracy.step not in steps]
    if without:
        yield (
            f"at step {accuracy.step} the accuracy of {', '.join(without)} is interpolated between measured steps, "
            "or not known where there is none before it"
        )


def _points(run: ComparedRun, accuracy: Accuracy) -> list[HeldOut]:
    return [point for point in run.held_out if (point.set, point.mode) == (accuracy.set, accuracy.mode)]


def _notes_on_evaluations(runs: Sequence[ComparedRun], evaluations: Sequence[Path]) -> Iterator[str]:
    used = {point.folder.resolve() for run in runs for point in run.held_out}
    for folder in evaluations:
        if folder.resolve() not in used:
            yield f"{folder} measured no version of these runs"


def _by_name(names: Sequence[str], values: Sequence[str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))
