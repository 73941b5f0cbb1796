"""`dcpo compare`: runs side by side as one HTML file, and as JSON for a program."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from dcpo_async.comparison.figures import NOTHING, Measured, written
from dcpo_async.comparison.plots import COLORS, Plot, keys, plots
from dcpo_async.comparison.runs import check_text, read_runs
from dcpo_async.comparison.summary import Comparison, Row, compared
from dcpo_async.durable import write_json
from dcpo_async.errors import ConfigError
from dcpo_async.evaluation.results import Mode


@dataclass(frozen=True, slots=True)
class Table:
    """Headings, and for each configuration its cells."""

    title: str
    headings: list[str]
    lines: list[list[str]]


def compare(
    words: Sequence[str],
    out: Path,
    *,
    evaluations: Sequence[Path] = (),
    set_name: str | None = None,
    mode: Mode | None = None,
    json_path: Path | None = None,
) -> Comparison:
    """Read runs and write the report.

    Args:
        words: [NAME=]FOLDER of each run.
        out: HTML file.
        evaluations, set_name, mode: see `compared`.
        json_path: where the numbers go too.

    Raises ConfigError for what cannot be read, compared or written.
    """
    check_text(str(out))
    comparison = compared(read_runs(words, evaluations), evaluations=evaluations, set_name=set_name, mode=mode)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(html(comparison, list(plots(comparison))), encoding="utf-8")
        if json_path is not None:
            json_path.parent.mkdir(parents=True, exist_ok=True)
            write_json(json_path, as_json(comparison))
    except OSError as error:
        raise ConfigError(f"the report cannot be written ({error}); name another --out or --json") from None
    return comparison


def html(comparison: Comparison, figures: Sequence[Plot]) -> str:
    """The report: one file without scripts, which needs nothing else; the same input gives the same text."""
    environment = Environment(
        loader=PackageLoader("dcpo_async.comparison", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html.j2")
    return template.render(
        comparison=comparison, tables=tables(comparison), keys=keys(comparison.rows), plots=figures, palette=COLORS
    )


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Every number of the tables, unrounded: null where nothing was measured."""
    accuracy = comparison.accuracy
    return {
        "accuracy": asdict(accuracy) if accuracy else None,
        "last_common_step": comparison.last_common_step,
        "configurations": [_row_as_json(row) for row in comparison.rows],
        "notes": list(comparison.notes),
    }


def _row_as_json(row: Row) -> dict[str, Any]:
    runs = [{"run_id": run.run_id, "folder": str(run.folder), "seed": run.config.seed} for run in row.runs]
    costs = ("responses_per_step", "tokens", "seconds")
    found = ("final", "best", "at_equal_steps", "at_equal_responses", "accuracy_difference", "reward_difference")
    figures = {name: getattr(row, name) for name in (*costs, *found)} | row.metrics
    return {
        "name": row.name,
        "runs": runs,
        "settings": row.settings,
        "steps": list(row.steps),
        **{name: asdict(value) if value else None for name, value in figures.items()},
    }


def tables(comparison: Comparison) -> list[Table]:
    """Reward and differences, held-out accuracy where there is any, what was run, and the metrics of training."""
    rows = comparison.rows
    settings = list(rows[0].settings)
    found = [_results(comparison)]
    if (accuracy := comparison.accuracy) is not None:
        responses = NOTHING if accuracy.responses is None else f"{accuracy.responses:,.0f}"
        headings = ["final", "best", f"at step {accuracy.step}", f"at {responses} responses"]
        figures = [(row.final, row.best, row.at_equal_steps, row.at_equal_responses) for row in rows]
        lines = [[percent(value) for value in values] for values in figures]
        found.append(Table(f"Held-out accuracy on {accuracy.set}, {accuracy.mode}", headings, lines))
    found += [
        Table(
            "Configurations, and the settings in which they differ",
            ["runs", *(name.partition(".")[2] for name in settings)],
            [[str(len(row.runs)), *row.settings.values()] for row in rows],
        ),
        Table("Cost", ["steps", "responses per step", "tokens", "seconds"], [_costs(row) for row in rows]),
    ]
    found.append(
        Table(
            f"Training, mean over steps 1 to {comparison.last_common_step}",
            ["RUR", "RUR, later visits", "mean |Â|", "TCR"],
            [
                [
                    percent(row.metrics["rur"]),
                    percent(row.metrics["rur_later"]),
                    written(row.metrics["advantage_abs_mean"], ".4f"),
                    percent(row.metrics["tcr"], digits=4),
                ]
                for row in rows
            ],
        )
    )
    return found


def _results(comparison: Comparison) -> Table:
    """What a reader looks for: rewards, accuracies, and how far each configuration is from the first."""
    rows, accuracy = comparison.rows, comparison.accuracy
    columns = [("mean reward", [written(row.metrics["reward"], ".3f") for row in rows])]
    if len(rows) > 1:
        columns.append(("difference at the end", [written(row.reward_difference, "+.3f") for row in rows]))
    if accuracy:
        columns.append((f"accuracy at step {accuracy.step}", [percent(row.at_equal_steps) for row in rows]))
    if accuracy and len(rows) > 1:
        found = [written(row.accuracy_difference, "+.1f", scale=100.0, unit=" points") for row in rows]
        columns.append(("difference of accuracy", found))
    title = "Results" if len(rows) == 1 else f"Results; differences are from {rows[0].name}"
    lines = [list(line) for line in zip(*(cells for _, cells in columns), strict=True)]
    return Table(title, [heading for heading, _ in columns], lines)


def percent(value: Measured | None, digits: int = 1) -> str:
    """A share with its interval: 0.931 from 0.91 to 0.95 is '93.1 [91.0, 95.0] %'."""
    if value is not None and value.low is not None and value.high is not None:
        # Student's interval knows no bounds; a share has them.
        value = Measured(value.mean, max(0.0, value.low), min(1.0, value.high))
    return written(value, f".{digits}f", scale=100.0, unit=" %")


def _costs(row: Row) -> list[str]:
    steps = ", ".join(str(step) for step in sorted(set(row.steps)))
    return [
        steps,
        written(row.responses_per_step),
        NOTHING if row.tokens is None else f"{row.tokens.mean:,.0f}",
        NOTHING if row.seconds is None else f"{row.seconds.mean:,.0f}",
    ]
