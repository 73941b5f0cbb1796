"""The process of one sink: passes on what the run folder gains, until told that no more comes; then the rest."""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from dcpo_async.config.sections import SinkName, TrackingSettings
from dcpo_async.run_folder import RunFolder
from dcpo_async.supervision import sign_of_progress
from dcpo_async.tracking.follower import Follower, mark_file, tracking_folder
from dcpo_async.tracking.interface import TrackedRun, Tracker, flat

log = logging.getLogger("tracking")

LOOK_SECONDS = 1.0
SILENCE_SECONDS = 180.0
"""A call of a sink that takes longer hangs: its process is killed and started again."""
SAVED_POINTS = 100
"""After so many at the latest it is noted how far a sink has come."""
NICENESS = 10
"""Behind the learner's own processes, where cores are scarce."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits 0 once it has passed on everything, 1 when the sink fails."""
    parser = argparse.ArgumentParser(prog="dcpo_async.tracking", description="One sink; dcpo-learner starts it.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--sink", choices=get_args(SinkName), required=True)
    parser.add_argument("--run-id", required=True)
    parser.add_argument("--until", type=Path, required=True, help="file that appears when nothing more is written")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    os.nice(NICENESS)
    try:
        follow(options.run, options.sink, options.run_id, options.until)
    except Exception as error:
        # Whatever another package raises; the launcher tells the last line of the log.
        log.exception("%s failed", options.sink)
        print(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None


def follow(folder: Path, sink: SinkName, run_id: str, until: Path) -> None:
    """Pass on a run's metrics to a sink until a file is there; raises whatever the sink raises."""
    sign_of_progress(f"{sink} is opened", SILENCE_SECONDS)
    config: Mapping[str, Any] = json.loads(RunFolder(folder).config.read_text())
    settings = TrackingSettings.model_validate(config["tracking"])
    own = tracking_folder(folder) / sink
    run = TrackedRun(run_id, settings.name or folder.resolve().name, folder, own, settings, flat(config))
    follower = Follower(folder, mark_file(folder, sink), run_id)
    tracker = opened(sink, run, follower.step)
    follower.skip_to(tracker.sent_step())
    log.info("%s goes on after step %d", sink, follower.step)
    is_last = False
    while not is_last:
        is_last = until.exists()
        pass_on(follower, tracker)
        if not is_last:
            time.sleep(LOOK_SECONDS)
    tracker.close()


def pass_on(follower: Follower, tracker: Tracker) -> None:
    """Pass on what was written since, and note how far that came, also where the sink fails in the middle."""
    unsaved = 0
    try:
        for point in follower.points():
            sign_of_progress(f"step {point.step}", SILENCE_SECONDS)
            tracker.write(point.step, point.metrics)
            unsaved += 1
            if unsaved >= SAVED_POINTS:
                tracker.flush()
                follower.save()
                unsaved = 0
    finally:
        if unsaved:
            tracker.flush()
            follower.save()
    sign_of_progress(f"after step {follower.step}", SILENCE_SECONDS)


def opened(sink: SinkName, run: TrackedRun, step: int) -> Tracker:
    """A sink, ready to go on after a step; each brings packages that the others do without."""
    match sink:
        case "tensorboard":
            from dcpo_async.tracking.tensorboard_files import TensorBoardTracker

            return TensorBoardTracker(run, step)
        case "wandb":
            from dcpo_async.tracking.wandb_run import WandbTracker

            return WandbTracker(run, step)
        case "mlflow":
            from dcpo_async.tracking.mlflow_run import MlflowTracker

            return MlflowTracker(run, step)
        case "trackio":
            from dcpo_async.tracking.trackio_run import TrackioTracker

            return TrackioTracker(run, step)


if __name__ == "__main__":
    main()
