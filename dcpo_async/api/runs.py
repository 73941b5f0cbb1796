"""A run folder as Arrow tables, beside a learner that runs and after it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from dcpo_async.errors import ConfigError
from dcpo_async.evaluation.results import SUMMARY_NAME
from dcpo_async.metrics.jsonl import read_metrics
from dcpo_async.run_folder import RunFolder

PROMPTS_NAME = "prompts.parquet"


@dataclass(frozen=True, slots=True)
class Run:
    """What the folder of a run says; each table has `.to_pandas()`.

    Attributes:
        run_id: as peers know it.
        folder: of the run.
        settings: of the newest start, as nested tables of plain values; {} where none is there.
        status: what the learner wrote last, as in `dcpo status --json`.
        metrics: a row for each optimizer step in step order, a column for each metric; null where a step has none.
        evaluations: a row for each measured model or version, set and mode: model, step, weights_version, set,
            problems, mode, samples, accuracy, low and high (its 95 % interval over problems), response_length,
            truncated, no_answer.
    """

    run_id: str
    folder: Path
    settings: dict[str, Any]
    status: dict[str, Any]
    metrics: pa.Table
    evaluations: pa.Table

    @property
    def prompts(self) -> pa.Table:
        """A row for each prompt, as `dcpo stats RUN` has written it; raises ConfigError before that."""
        path = RunFolder(self.folder).stats / PROMPTS_NAME
        if not path.is_file():
            raise ConfigError(f"{path}: not there yet; `dcpo stats {self.folder}` writes it from the ledger")
        return parquet.read_table(path)


def read_run(folder: str | Path) -> Run:
    """Read a run folder, also while a learner works on it; nothing in it is changed.

    Raises:
        ConfigError: no learner has ever written into this folder, or a file in it cannot be read.
    """
    where = RunFolder(Path(folder))
    status = _json(where.status)
    if not status:
        raise ConfigError(f"{folder}: no status.json in it; name the folder of a run that has been started")
    return Run(
        run_id=str(status["run_id"]),
        folder=where.path,
        settings=_json(where.config),
        status=status,
        metrics=pa.Table.from_pylist(_even(read_metrics(where.path))),
        evaluations=pa.Table.from_pylist(_even(_evaluations(where.evaluation))),
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    return found


def _even(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with one set of columns: Arrow would go by those of the first."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def _evaluations(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for model, entry in _json(folder / SUMMARY_NAME).items():
        for set_name, figures in entry.get("sets", {}).items():
            for mode in ("greedy", "sampled"):
                if figures.get(mode):
                    place = {"model": model, "step": entry["step"], "weights_version": entry["weights_version"]}
                    what = {"set": set_name, "problems": figures["problems"], "mode": mode}
                    rows.append({**place, **what, **_figures(figures[mode])})
    return rows


def _figures(measured: dict[str, Any]) -> dict[str, Any]:
    interval = measured["accuracy"]
    figures = {name: measured[name] for name in ("samples", "response_length", "truncated", "no_answer")}
    return figures | {"accuracy": interval["mean"], "low": interval["low"], "high": interval["high"]}
