"""Several runs side by side: where each stands, and the settings in which they differ."""

from collections.abc import Sequence
from typing import Any

from learner.page.runs import ServedRun

WITHOUT_EFFECT = ("folder", "network.")
"""Settings that tell nothing about what a run does."""
FIGURES = ("reward", "rur", "tcr", "entropy", "response_length", "lag_mean", "tokens_per_second")
SHARE = 0.1
"""Of a run's newest steps, over which its figures are averaged."""


def comparison_json(runs: Sequence[ServedRun]) -> dict[str, Any]:
    """Rows of runs, and rows of settings whose values are not the same in all of them."""
    return {"rows": [_row(run) for run in runs], "settings": differences([run.settings() for run in runs])}


def _row(run: ServedRun) -> dict[str, Any]:
    status, health = run.look()
    run.curves.look()
    accuracy = {name: points[-1] for name, points in run.accuracy().items()}
    return {
        "name": run.name,
        "run_id": status.get("run_id"),
        "state": health.state,
        "step": status.get("step"),
        "max_steps": status.get("max_steps"),
        "figures": {key: run.curves.mean_of_newest(key, SHARE) for key in FIGURES},
        "generated_tokens": status.get("generated_tokens"),
        "accuracy": accuracy,
    }


def differences(settings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Names whose values differ between runs, with the value of each; null where a run has none.

    Example: of {"seed": 1, "a": 2} and {"seed": 2, "a": 2} it is seed alone.
    """
    names = sorted({name for table in settings for name in table if not name.startswith(WITHOUT_EFFECT)})
    rows = [{"name": name, "values": [table.get(name) for table in settings]} for name in names]
    return [row for row in rows if any(value != row["values"][0] for value in row["values"])]
