"""MLflow by its client: a server in online mode, a database in the run folder in offline mode."""

import os
import re
import time
from collections.abc import Mapping
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from dcpo_async.tracking.interface import STEP, TrackedRun

RUN_TAG = "dcpo.run_id"
REQUEST_SECONDS, RETRIES = "20", "2"
MAX_PARAM_CHARS, MAX_PARAMS = 6000, 100


class MlflowTracker:
    """One run of MLflow, found again by a tag with the id of the ledger."""

    def __init__(self, run: TrackedRun, step: int) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", REQUEST_SECONDS)
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", RETRIES)
        uri = None
        if run.settings.mode == "offline":
            run.folder.mkdir(parents=True, exist_ok=True)
            uri = f"sqlite:///{run.folder.resolve()}/mlflow.db"
        self._client = MlflowClient(tracking_uri=uri)
        experiment = self._experiment(run)
        found = self._client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{run.id}'", max_results=1)
        if found:
            self._id, self._sent = found[0].info.run_id, int(found[0].data.metrics.get(STEP, 0))
            self._client.update_run(self._id, status="RUNNING")
        else:
            tags = {RUN_TAG: run.id, **dict.fromkeys(run.settings.tags, "yes")}
            tags |= {"group": run.settings.group} if run.settings.group else {}
            self._id = self._client.create_run(experiment, tags=tags, run_name=run.name).info.run_id
            self._sent = 0
        self._tell_settings(run, dict(found[0].data.params) if found else {})

    def sent_step(self) -> int:
        """As the newest point says."""
        return self._sent

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send one step in one request."""
        now = int(time.time() * 1000)
        points = [Metric(name_here(name), float(value), now, step) for name, value in metrics.items()]
        self._client.log_batch(self._id, metrics=points)

    def flush(self) -> None:
        """It was sent at once."""

    def close(self) -> None:
        """Say that nothing more comes for now."""
        self._client.set_terminated(self._id)

    def _experiment(self, run: TrackedRun) -> str:
        found = self._client.get_experiment_by_name(run.settings.project)
        if found is not None:
            return str(found.experiment_id)
        place = (run.folder / "artifacts").resolve().as_uri() if run.settings.mode == "offline" else None
        return str(self._client.create_experiment(run.settings.project, artifact_location=place))

    def _tell_settings(self, run: TrackedRun, known: Mapping[str, Any]) -> None:
        """Parameters never change in MLflow: a setting that has is a tag, `changed.NAME`."""
        told = {name: str(value)[:MAX_PARAM_CHARS] for name, value in run.config.items()}
        new = [Param(name, value) for name, value in told.items() if name not in known]
        for first in range(0, len(new), MAX_PARAMS):
            self._client.log_batch(self._id, params=new[first : first + MAX_PARAMS])
        changed = [
            RunTag(f"changed.{name}", told[name]) for name in known if told.get(name, known[name]) != known[name]
        ]
        for first in range(0, len(changed), MAX_PARAMS):
            self._client.log_batch(self._id, tags=changed[first : first + MAX_PARAMS])


def name_here(name: str) -> str:
    """A name in the letters that MLflow takes: `name_here("held_out/avg@1, low")` is "held_out/avg_at_1_low"."""
    return re.sub(r"[^\w\-. :/]", "_", name.replace("@", "_at_").replace(", ", "_"))
