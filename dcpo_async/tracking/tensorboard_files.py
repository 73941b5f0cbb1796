"""TensorBoard: event files in the run folder, whatever the mode."""

from collections.abc import Mapping

from dcpo_async.metrics.jsonl import measured_steps
from dcpo_async.metrics.sink import Thinning
from dcpo_async.metrics.tensorboard import TensorBoardWriter
from dcpo_async.run_folder import RunFolder
from dcpo_async.tracking.interface import TrackedRun


class TensorBoardTracker:
    """Points in `tensorboard`; those that a killed process wrote and did not note are written again, and shown once.

    Its files keep the steps that metrics.jsonl keeps, and every evaluation.

    Args:
        run: its folder holds the files.
        step: the last one that was noted.
    """

    def __init__(self, run: TrackedRun, step: int) -> None:
        folder = RunFolder(run.path).tensorboard
        whole_steps = run.config["training.whole_metrics_steps"]
        thinning = Thinning(whole_steps, lambda: measured_steps(RunFolder(run.path))) if whole_steps else None
        self._writer = TensorBoardWriter(folder, thinning, after=step if folder.exists() else None)

    def sent_step(self) -> int:
        """Nothing reads its files here."""
        return 0

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one step's points."""
        self._writer.write(step, metrics)

    def flush(self) -> None:
        """Into the file."""
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
