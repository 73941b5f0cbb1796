"""A real trainer whose disk has no room for a checkpoint: the kernel says so to the rank that writes it."""

import json
from pathlib import Path

import pytest

from dcpo_async.config import RunConfig
from dcpo_async.protocol.messages import Message
from dcpo_async.protocol.trainer_messages import Checkpointed, CheckpointFailed, TrainerHello
from dcpo_async.run_folder import RunFolder
from learner.checkpoints.folder import complete_steps, writing_folder
from tests.learner.trainer.test_trainer import make_config, run_trainer

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


class FullDisk:
    """Fills the disk up for the checkpoints of some steps, once the trainer has cleared up and begun."""

    def __init__(self, config: RunConfig, steps: tuple[int, ...]) -> None:
        self.folder, self.steps = RunFolder(config.folder).checkpoints, steps

    def __call__(self, message: Message) -> bool:
        if isinstance(message, TrainerHello) and message.rank == 0:
            for step in self.steps:
                writing = writing_folder(self.folder, step)
                writing.mkdir(parents=True)
                (writing / "zero_pp_rank_1_mp_rank_00_optim_states.pt").symlink_to("/dev/full")
                (writing / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt").symlink_to("/dev/full")
        return False


async def test_the_run_goes_on_and_the_next_checkpoint_stands(tmp_path: Path) -> None:
    config = make_config(tmp_path / "run", training={"zero_stage": 2})
    coordinator = await run_trainer(config, num_ranks=2, until=FullDisk(config, steps=(2,)))
    told = [message for message in coordinator.told if isinstance(message, Checkpointed | CheckpointFailed)]
    assert [(type(message), message.step) for message in told] == [(CheckpointFailed, 2), (Checkpointed, 4)]
    assert told[0].reason == "rank 1: OSError: [Errno 28] No space left on device"
    folder = RunFolder(config.folder).checkpoints
    assert complete_steps(folder) == [4]
    assert [path.name for path in folder.iterdir()] == ["step-00000004"]


async def test_a_last_checkpoint_that_has_no_room_ends_the_run_in_one_line(tmp_path: Path) -> None:
    config = make_config(tmp_path / "run", training={"zero_stage": 2})
    config = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"interval_steps": 3})})
    await run_trainer(config, num_ranks=2, expected_code=2, until=FullDisk(config, steps=(4,)))
    told = json.loads(RunFolder(config.folder).trainer_error.read_text())
    assert told["exit_code"] == 2
    assert "the checkpoint of step 4 could not be written, number 1 in a row: rank 1: OSError" in told["message"]
    assert told["message"].endswith("the same command goes on from step 3")
