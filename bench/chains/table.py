"""The result of a comparison on chains, as Markdown; differences are paired by seed, with Student's 95 % interval."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from bench.chains.figure import Curves, draw
from bench.chains.plan import FACTS_NAME, SET, START_NAME, TENTHS, Plan, is_finished
from dcpo_async.comparison.figures import NOTHING, across_runs, written
from dcpo_async.comparison.report import compare
from dcpo_async.comparison.runs import ComparedRun, Cost, read_run
from dcpo_async.errors import ConfigError
from dcpo_async.evaluation.results import SUMMARY_NAME
from dcpo_async.run_folder import RunFolder

USEFUL = (0.25, 0.75)
"""RUR of GRPO over most of a run on a task that suits."""


@dataclass(frozen=True, slots=True)
class Found:
    """A run and the figures that were measured beside its held-out accuracy.

    Attributes:
        facts: at each measurement.
        pass_at: pass@k of its last weights, by k.
    """

    run: ComparedRun
    facts: list[dict[str, float]]
    pass_at: dict[int, float]

    def accuracy(self, cost: Cost, x: float) -> float:
        """Held-out accuracy once so much was spent, which is within what was measured."""
        value = self.run.accuracy(SET, "sampled", cost).at(x)
        assert value is not None
        return value.mean

    def mean(self, key: str) -> float:
        """A metric, in the mean over the steps that have it; 0 where none has."""
        values = [line[key] for line in self.run.metrics if key in line]
        return fmean(values) if values else 0.0

    def curves(self) -> Curves:
        """Responses generated at each measurement, held-out accuracy, and the share of unknown facts learned."""
        accuracy = self.run.accuracy(SET, "sampled", "responses")
        return list(accuracy.x), [value.mean for value in accuracy.values], [facts["learned"] for facts in self.facts]

    @property
    def useful(self) -> float:
        """Share of all generated responses that were trained with an advantage; RUR passes over what was discarded."""
        trained = sum(line["rur"] * line["responses"] for line in self.run.metrics)
        return trained / self.run.metrics[-1]["generated_responses"]

    def sum(self, key: str) -> float:
        """A count, over all steps."""
        return sum(line[key] for line in self.run.metrics)


ByArm = Mapping[str, Mapping[int, Found]]
Value = Callable[[Found], float]


def finished(plan: Plan) -> dict[str, dict[int, Found]]:
    """The runs of a plan that have come to their end, by arm and seed."""
    found: dict[str, dict[int, Found]] = {arm.name: {} for arm in plan.arms}
    for run in (run for seed in plan.seeds for run in plan.runs(seed) if is_finished(run.folder)):
        read = read_run(run.arm.name, run.folder)
        folder = RunFolder(run.folder).evaluation
        entries: dict[str, Any] = json.loads((folder / SUMMARY_NAME).read_text())
        last = max(entries.values(), key=lambda entry: int(entry["step"]))
        pass_at = {int(k): share for k, share in last["sets"][SET]["sampled"]["pass_at"].items()}
        found[run.arm.name][run.seed] = Found(read, json.loads((folder / FACTS_NAME).read_text()), pass_at)
    return {name: runs for name, runs in found.items() if runs}


def report(plan: Plan) -> str:
    """The tables, once `dcpo compare` has written its report beside the runs, and the curves are drawn.

    Raises ConfigError where nothing is finished.
    """
    found = finished(plan)
    if not found:
        raise ConfigError(f"{plan.out}: no run of these arms and seeds is finished yet")
    runs = [f"{name}={found[name][seed].run.folder}" for name in found for seed in found[name]]
    compare(runs, plan.out / f"report-{plan.suite}.html", json_path=plan.out / f"report-{plan.suite}.json")
    curves = {name: [run.curves() for run in runs.values()] for name, runs in found.items()}
    draw(curves, plan.out / f"curves-{plan.suite}.svg")
    tables = [_accuracies(found), _training(found), _by_tenth(found), _conditions(plan, found)]
    return "\n\n".join(tables)


def _accuracies(found: ByArm) -> str:
    """What each arm is worth at equal responses and at equal steps, and what it knows; differences to the first arm."""
    responses = min(_end(run, "responses") for runs in found.values() for run in runs.values())
    first = next(iter(found.values()))
    rows = []
    for name, runs in found.items():
        # Some arms take far fewer steps for as many responses: the steps are those of the pair.
        steps = min(_end(run, "steps") for pair in (runs, first) for run in pair.values())
        figures: list[tuple[Value, float]] = [
            (lambda run: run.accuracy("responses", responses), 100),
            (lambda run, steps=steps: run.accuracy("steps", steps), 100),  # type: ignore[misc]
            (lambda run: run.facts[-1]["learned"], 100),
            (lambda run: run.pass_at[8], 100),
            (lambda run: run.pass_at[32], 100),
            (lambda run: run.facts[-1]["entropy"], 1),
        ]
        cells = [name, str(len(runs))]
        for number, (value, scale) in enumerate(figures):
            form = ".1f" if scale == 100 else ".3f"
            own = written(across_runs([value(run) for run in runs.values()]), form, scale)
            cells.append(f"{own}, step {steps:.0f}" if number == 1 else own)
            if runs is not first:
                cells.append(_paired(runs, first, value, scale, form))
            else:
                cells.append(NOTHING)
        rows.append(cells)
    heads = [f"after {responses:.0f} responses, %", "at equal steps, %", "unknown facts learned, %"]
    heads += ["pass@8, %", "pass@32, %", "entropy, nats"]
    header = ["arm", "seeds", *(cell for head in heads for cell in (head, "against the first"))]
    return _markdown(header, rows)


def _paired(runs: Mapping[int, Found], first: Mapping[int, Found], value: Value, scale: float, form: str) -> str:
    """What an arm has more or less than another under the same seeds."""
    seeds = runs.keys() & first.keys()
    if not seeds:
        return NOTHING
    return written(across_runs([value(runs[seed]) - value(first[seed]) for seed in sorted(seeds)]), f"+{form}", scale)


def _training(found: ByArm) -> str:
    header = ["arm", "learning rate", "RUR, %", "of all generated, %", "RUR later, %", "TCR, %"]
    header += ["effective sample size, %", "KL to the behavior", "entropy", "steps", "responses a step"]
    header += ["processor seconds"]
    rows = []
    for name, runs in found.items():
        every = list(runs.values())

        def cell(value: Value, form: str = ".1f", scale: float = 1, runs: Sequence[Found] = every) -> str:
            return written(across_runs([value(run) for run in runs]), form, scale)

        rows.append(
            [
                name,
                f"{every[0].run.config.training.learning_rate:g}",
                cell(lambda run: run.mean("rur"), scale=100),
                cell(lambda run: run.useful, scale=100),
                cell(lambda run: run.mean("rur_later"), scale=100),
                cell(lambda run: run.mean("tcr"), ".2f", 100),
                cell(lambda run: run.mean("ess_fraction"), scale=100),
                cell(lambda run: run.mean("kl_behavior"), ".5f"),
                cell(lambda run: run.mean("entropy"), ".3f"),
                cell(lambda run: _end(run, "steps"), ".0f"),
                cell(lambda run: _end(run, "responses") / _end(run, "steps"), ".0f"),
                cell(lambda run: run.run.metrics[-1]["cpu_seconds"], ".0f"),
            ]
        )
    return _markdown(header, rows)


def _by_tenth(found: ByArm) -> str:
    """Which tokens the clip stops, by their old probability: those with a gradient, over all steps and seeds."""
    header = [
        "clipped above / below, %, by old probability",
        *(f"{n / TENTHS:g}–{(n + 1) / TENTHS:g}" for n in range(TENTHS)),
    ]
    rows = []
    for name, runs in found.items():
        cells = [name]
        for tenth in range(TENTHS):
            tokens, high, low = (
                sum(run.sum(f"{key}_q{tenth}") for run in runs.values())
                for key in ("tokens", "clipped_high", "clipped_low")
            )
            cells.append(f"{100 * high / tokens:.2f} / {100 * low / tokens:.2f}" if tokens else NOTHING)
        rows.append(cells)
    return _markdown(header, rows)


def _conditions(plan: Plan, found: ByArm) -> str:
    """Whether the task tells algorithms apart, as measured."""
    bound = 1 / next(iter(next(iter(found.values())).values())).run.config.sampling.group_size
    starts = [json.loads((plan.start(seed) / START_NAME).read_text()) for seed in plan.seeds if _has_run(found, seed)]
    below = [fmean(rate < bound for rate in start["pass_rates"]) for start in starts]
    best = max(run.accuracy("steps", _end(run, "steps")) for runs in found.values() for run in runs.values())
    lines = [
        f"- training prompts below 1/G at the start: {written(across_runs(below), scale=100)} % (at least 20 wanted)",
        f"- highest held-out accuracy at the end of a run: {100 * best:.1f} % (at most 90 wanted)",
    ]
    if edges := plan.at_the_edge():
        named = ", ".join(f"{name} ({rate:g})" for name, rate in edges.items())
        lines.append(
            f"- not at their best rate, but at an end of those tried: {named} (none wanted; give --rates beyond)"
        )
    if "GRPO" in found:
        steps = [line["rur"] for run in found["GRPO"].values() for line in run.run.metrics]
        inside = fmean(USEFUL[0] <= rate <= USEFUL[1] for rate in steps)
        lines.append(f"- steps at which GRPO's RUR is 25 to 75 %: {100 * inside:.0f} % (most wanted)")
    return "\n".join(lines)


def _has_run(found: ByArm, seed: int) -> bool:
    return any(seed in runs for runs in found.values())


def _end(found: Found, cost: Cost) -> float:
    return found.run.accuracy(SET, "sampled", cost).x[-1]


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))
