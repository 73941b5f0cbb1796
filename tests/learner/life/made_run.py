"""A run folder with a real ledger and real checkpoints, whose trainer takes no time."""

import itertools
import json
import sys
from pathlib import Path

from dcpo_async.run_folder import RunFolder
from learner.checkpoints.folder import CheckpointLayout, publish_checkpoint, remove_superseded, writing_folder
from learner.coordinator.intake import Intake
from tests.learner.small_run import make_config, make_intake, train

NUM_PROMPTS = 8
LAYOUT = CheckpointLayout(num_ranks=1, zero_stage=0, dtype="float32")
REWARDS = ((1.0, 0.0), (0.0, 0.0), (1.0, 1.0), (0.0, 1.0), (1.0, 0.0))


def begin(folder: Path, segment_bytes: int = 1 << 20) -> Intake:
    """The run in a folder, begun or gone on with; the caller closes its ledger."""
    config = make_config(folder, groups_per_step=2, max_lag=0)
    folder.mkdir(exist_ok=True)
    RunFolder(folder).config.write_text(config.model_dump_json())
    intake = make_intake(config, NUM_PROMPTS, segment_bytes)
    if intake.ledger.meta("run_id") is None:
        intake.ledger.set_meta("run_id", f"{folder.name}-1234")
    return intake


def go_on(intake: Intake, num_steps: int) -> None:
    """Train so many steps, each with its line of metrics."""
    folder = intake.config.folder
    for _ in range(num_steps):
        step = intake.ledger.next_batch_step()
        train(intake, [REWARDS[(2 * step + place) % len(REWARDS)] for place in range(2)])
        intake.ledger.commit()
        with RunFolder(folder).metrics.open("a") as lines:
            lines.write(json.dumps({"step": step + 1, "generated_tokens": intake.generated_tokens}) + "\n")


def take_checkpoint(intake: Intake) -> int:
    """Checkpoint the state after all committed batches, remove what it supersedes, and return its step."""
    folder, step = RunFolder(intake.config.folder).checkpoints, intake.ledger.next_batch_step()
    writing = writing_folder(folder, step)
    writing.mkdir(parents=True)
    for name in ("model_states.pt", "optim_states.pt"):
        (writing / name).write_text(f"{name} after {step} steps" * 1000)
    publish_checkpoint(folder, step, "digest", LAYOUT, {})
    intake.ledger.release_segments(min(remove_superseded(folder, 2, None)))
    return step


def train_for_ever(folder: Path) -> None:
    """A learner under load: a checkpoint for each step, and segments that are deleted soon."""
    intake = begin(folder, segment_bytes=1000)
    for number in itertools.count(1):
        go_on(intake, 1)
        take_checkpoint(intake)
        if number == 3:
            print("ready", flush=True)


if __name__ == "__main__":
    train_for_ever(Path(sys.argv[1]))
