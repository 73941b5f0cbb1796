"""trackio: a database in the run folder in offline mode; else its usual place, a Space, or a server of one's own."""

import os
from collections.abc import Mapping
from typing import Any

from dcpo_async.tracking.interface import TrackedRun


class TrackioTracker:
    """One run of trackio, which knows runs by their names: the id of the ledger is part of it."""

    def __init__(self, run: TrackedRun, step: int) -> None:
        if run.settings.mode == "offline":
            os.environ["TRACKIO_DIR"] = str(run.folder.resolve())
            for variable in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
                os.environ.pop(variable, None)
        # Where it stores is decided when it is imported.
        import trackio

        self._run: Any = trackio.init(
            project=run.settings.project,
            name=run.id if run.id.startswith(run.name) else f"{run.name} {run.id}",
            group=run.settings.group or None,
            config=dict(run.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def sent_step(self) -> int:
        """Nothing asks it here."""
        return 0

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hand one row over to its thread."""
        self._run.log(dict(metrics), step=step)

    def flush(self) -> None:
        """Its thread writes within a second."""

    def close(self) -> None:
        """Wait until it has."""
        self._run.finish()
