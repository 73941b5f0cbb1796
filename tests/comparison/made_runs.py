"""Run folders and evaluations made by hand."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dcpo_async.config import RunConfig
from dcpo_async.evaluation.figures import Figures
from dcpo_async.evaluation.statistics import Estimate
from dcpo_async.evaluation.table import Row


def line(step: int, **values: float) -> dict[str, float]:
    """A metrics line of a run that generates 8 responses of 5 tokens in each step of 2 seconds."""
    spent = {"seconds": 2.0 * step, "generated_responses": 8.0 * step, "generated_tokens": 40.0 * step}
    trained = {"reward": 0.25, "rur": 0.5, "rur_later": 0.75, "tcr": 0.01, "advantage_abs_mean": 0.8}
    seen = {"entropy": 1.5, "response_length": 5.0, "lag_mean": 2.0}
    return {"step": step, **spent, **trained, **seen, **values}


def write_run(
    folder: Path,
    metrics: Sequence[Mapping[str, float]],
    *,
    run_id: str | None = None,
    is_finished: bool = True,
    seed: int = 0,
    **sections: Mapping[str, Any],
) -> Path:
    """A run folder; its id is that of the folder unless it is given, and `sections` are tables of its configuration."""
    folder.mkdir(parents=True)
    config = RunConfig.model_validate({"folder": folder, "seed": seed, **sections})
    (folder / "config.json").write_text(config.model_dump_json())
    status = {"run_id": run_id or f"run-{folder.name}", "step": len(metrics), "is_finished": is_finished}
    (folder / "status.json").write_text(json.dumps(status))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    return folder


def measured(
    run_id: str | None,
    step: int | None,
    mean: float,
    *,
    sets: Sequence[str] = ("sums",),
    problems: int = 10,
    version: int | None = None,
) -> dict[str, Any]:
    """An entry of an evaluation's summary: sampled responses, with an interval of 0.1 to each side."""
    figures = Figures(4, Estimate(mean, mean - 0.1, mean + 0.1), {1: mean}, 5.0, 0.0, 0.0)
    rows = {name: asdict(Row("model", name, problems, None, figures)) for name in sets}
    newest = step + 1 if version is None and step is not None else version
    return {"run": run_id, "weights_version": newest, "step": step, "tokens": 1, "seconds": 1.0, "sets": rows}


def write_evaluation(folder: Path, models: Mapping[str, dict[str, Any]], **settings: object) -> Path:
    """The folder of an evaluation, with the entries of its summary by model."""
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(models))
    shaped = {"temperature": 1.0, "set sums": "digest", "model some": "other digest", **settings}
    (folder / "settings.json").write_text(json.dumps(shaped))
    return folder
