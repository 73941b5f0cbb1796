"""The tables of an evaluation, as Markdown: what a terminal shows can be pasted."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from dcpo_async.evaluation.figures import Figures

AVERAGE = "average"
"""What the row over several sets is called in place of a set."""
WIDTH = 10_000
"""Wider than any table: a row that was broken in two would be no Markdown."""


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of a model on a set, or their average over its sets; None where a mode was left out."""

    model: str
    set: str
    problems: int
    greedy: Figures | None
    sampled: Figures | None


def markdown(rows: Sequence[Row]) -> str:
    """Two tables: accuracies in percent, and what the responses were like."""
    return f"{_rendered(_accuracies(rows))}\n\n{_rendered(_responses(rows))}\n"


def _accuracies(rows: Sequence[Row]) -> Table:
    samples = sorted({row.sampled.samples for row in rows if row.sampled})
    ks = sorted({k for row in rows if row.sampled for k in row.sampled.pass_at if k > 1})
    columns = ["Avg@1 (greedy)"] if any(row.greedy for row in rows) else []
    table = _table([*columns, *(f"Avg@{n}" for n in samples), *(f"pass@{k}" for k in ks)])
    for row in rows:
        cells = [_estimate(row.greedy)] if columns else []
        cells += [_estimate(row.sampled if row.sampled and row.sampled.samples == n else None) for n in samples]
        cells += [_percent(row.sampled.pass_at.get(k) if row.sampled else None) for k in ks]
        table.add_row(row.model, row.set, str(row.problems), *cells)
    return table


def _responses(rows: Sequence[Row]) -> Table:
    table = _table(["mode", "responses", "tokens", "truncated", "no answer"])
    for row in rows:
        for mode, figures in (("greedy", row.greedy), ("sampled", row.sampled)):
            if figures is not None:
                cells = [str(row.problems * figures.samples), f"{figures.response_length:.1f}"]
                cells += [_percent(figures.truncated), _percent(figures.no_answer)]
                table.add_row(row.model, row.set, str(row.problems), mode, *cells)
    return table


def _table(columns: Sequence[str]) -> Table:
    table = Table(box=box.MARKDOWN)
    table.add_column("model")
    table.add_column("set")
    for name in ("problems", *columns):
        table.add_column(name, justify="right")
    return table


def _estimate(figures: Figures | None) -> str:
    if figures is None:
        return "–"
    accuracy = figures.accuracy
    return f"{100 * accuracy.mean:.1f} [{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}]"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _rendered(table: Table) -> str:
    text = io.StringIO()
    Console(file=text, width=WIDTH, markup=False, highlight=False).print(table)
    return "\n".join(line.strip() for line in text.getvalue().splitlines() if line.strip())
