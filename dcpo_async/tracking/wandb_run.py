"""Weights & Biases; its own process hands on what it is given, and keeps it in files until it has."""

from collections.abc import Mapping
from typing import Any

import wandb

from dcpo_async.tracking.interface import STEP, TrackedRun

AXIS = "step"


class WandbTracker:
    """One run of W&B with the id of the ledger; the axis is the optimizer step, in whichever order points come.

    Nothing but metrics, settings and names is sent: no code, no console, no figures of the machine.
    """

    def __init__(self, run: TrackedRun, step: int) -> None:
        run.folder.mkdir(parents=True, exist_ok=True)
        self._run: Any = wandb.init(
            project=run.settings.project,
            name=run.name,
            id=run.id,
            resume="allow",
            group=run.settings.group or None,
            tags=list(run.settings.tags),
            mode=run.settings.mode,
            dir=str(run.folder),
            config=dict(run.config),
            allow_val_change=True,
            settings=wandb.Settings(
                console="off",
                silent=True,
                save_code=False,
                disable_code=True,
                disable_git=True,
                x_disable_stats=True,
                x_disable_meta=True,
            ),
        )
        self._run.define_metric(AXIS, hidden=True)
        self._run.define_metric("*", step_metric=AXIS)

    def sent_step(self) -> int:
        """By the run's summary, where the server has it."""
        return int(self._run.summary.get(STEP, 0) or 0) if self._run.resumed else 0

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hand one row over to W&B's own process."""
        self._run.log({AXIS: step, **metrics})

    def flush(self) -> None:
        """W&B's process has it, and keeps it in a file of its own."""

    def close(self) -> None:
        """Wait until everything is sent, or in offline mode is in the file."""
        self._run.finish()
