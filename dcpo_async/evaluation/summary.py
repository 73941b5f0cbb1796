"""The figures of everything that was measured into one folder: `summary.json`, `table.md`, and metrics by name."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter

from dcpo_async.durable import write_json
from dcpo_async.evaluation.figures import figures_of
from dcpo_async.evaluation.results import SUMMARY_NAME, ProblemResult, ResultsFolder
from dcpo_async.evaluation.table import AVERAGE, Row, markdown
from dcpo_async.weights.manifest import Manifest

ROW = TypeAdapter(Row)


class Summary:
    """Models and their figures, those of earlier starts included.

    Args:
        results: the folder; this is the only one who writes its summary.

    Attributes:
        entries: figures by the names of the models, as `summary.json` has them.
    """

    def __init__(self, results: ResultsFolder) -> None:
        self._folder, self.entries = results.folder, results.summary()

    def entry(
        self, model: str, found: Mapping[str, Sequence[ProblemResult]], manifest: Manifest | None
    ) -> dict[str, Any]:
        """The figures of a model that was measured.

        Args:
            found: results by set, at least one of each.
            manifest: of the run's version that it is; None for any other model.
        """
        results = [result for results in found.values() for result in results]
        tokens = sum(response.num_tokens for result in results for response in result.responses)
        seconds = max(result.elapsed_seconds for result in results)
        return {
            "run": manifest.run_id if manifest else None,
            "weights_version": manifest.weights_version if manifest else None,
            "step": manifest.step if manifest else None,
            "tokens": tokens,
            "seconds": seconds,
            "tokens_per_second": tokens / max(seconds, 1e-3),
            "sets": {row.set: asdict(row) for row in rows_of(model, found)},
        }

    def write(self, model: str, entry: Mapping[str, Any]) -> None:
        """Keep a model's figures."""
        self.entries[model] = dict(entry)
        write_json(self._folder / SUMMARY_NAME, self.entries)
        (self._folder / "table.md").write_text(self.report())

    def report(self) -> str:
        """The tables of all models, as Markdown, and how long each took."""
        times = [
            f"{name}: {model['tokens']} tokens in {model['seconds']:.0f} s, {model['tokens_per_second']:.0f} tokens/s\n"
            for name, model in self.entries.items()
        ]
        rows = [ROW.validate_python(row) for model in self.entries.values() for row in model["sets"].values()]
        return f"{markdown(rows)}\n{''.join(times)}" if rows else ""


def rows_of(model: str, found: Mapping[str, Sequence[ProblemResult]]) -> list[Row]:
    """A row for each set, and their average where there are several."""
    rows = [_row(model, name, [results]) for name, results in found.items()]
    return [*rows, _row(model, AVERAGE, list(found.values()))] if len(rows) > 1 else rows


def means(entry: Mapping[str, Any]) -> dict[str, float]:
    """Every figure of an entry by a name such as "aime24/avg@32"."""
    found: dict[str, float] = {}
    for row in map(ROW.validate_python, entry["sets"].values()):
        for mode, figures in (("greedy", row.greedy), ("sampled", row.sampled)):
            if figures is not None:
                accuracy, name = figures.accuracy, f"{row.set}/avg@{figures.samples}"
                found |= {name: accuracy.mean, f"{name}, low": accuracy.low, f"{name}, high": accuracy.high}
                found |= {f"{row.set}/pass@{k}": share for k, share in figures.pass_at.items() if k > 1}
                found[f"{row.set}/response_length, {mode}"] = figures.response_length
                found[f"{row.set}/truncated, {mode}"] = figures.truncated
    if entry["weights_version"] is not None:
        found["weights_version"] = float(entry["weights_version"])
    return found


def _row(model: str, name: str, sets: Sequence[Sequence[ProblemResult]]) -> Row:
    problems = sum(map(len, sets))
    return Row(model, name, problems, figures_of(sets, "greedy"), figures_of(sets, "sampled"))
