"""A real trainer and a publisher that is slow."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dcpo_async.protocol.trainer_messages import Published
from dcpo_async.weights.store import version_folder
from tests.learner.trainer.test_trainer import NUM_STEPS, exported, make_config, run_trainer

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


async def test_a_trainer_that_is_done_long_before_its_publisher_waits_for_its_last_state(tmp_path: Path) -> None:
    config = make_config(tmp_path / "run")
    coordinator = await run_trainer(config, is_synchronous=False, publisher_from_step=NUM_STEPS)
    published = [message for message in coordinator.told if isinstance(message, Published)]
    assert [(message.step, message.num_skipped) for message in published] == [(NUM_STEPS, NUM_STEPS)]
    newest = load_file(version_folder(config.folder / "weights", 1) / "model.safetensors")
    assert newest.keys() == exported(config).keys()
    assert all(torch.equal(newest[name], tensor) for name, tensor in exported(config).items())
