"""The type that GPUs train in, on two ranks under every ZeRO stage: gloo stands in for NCCL, all else is the same."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from dcpo_async.config import RunConfig
from dcpo_async.protocol.trainer_messages import Checkpointed, StepDone
from tests.learner.trainer.test_trainer import ScriptedCoordinator, exported, make_config, run_trainer

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]

STAGES = [pytest.param(stage, marks=[] if stage == 2 else pytest.mark.thorough) for stage in range(4)]


def bfloat16_config(folder: Path, zero_stage: int) -> RunConfig:
    training: dict[str, Any] = {"zero_stage": zero_stage, "micro_batch_tokens": 200}
    if zero_stage in (1, 2):
        # As on GPUs, where it is the default.
        training["deepspeed"] = {"zero_optimization": {"overlap_comm": True}}
    config = make_config(folder, training=training)
    model = config.model.model_copy(update={"dtype": "bfloat16", "gradient_checkpointing": True})
    return config.model_copy(update={"model": model})


@pytest.fixture(scope="module")
def in_float32(tmp_path_factory: pytest.TempPathFactory) -> ScriptedCoordinator:
    """One rank in float32, from the same weights."""
    return asyncio.run(run_trainer(make_config(tmp_path_factory.mktemp("float32") / "run")))


@pytest.mark.parametrize("zero_stage", STAGES)
async def test_two_ranks_killed_and_resumed_end_in_the_same_bits_and_train_as_float32_does(
    in_float32: ScriptedCoordinator, tmp_path: Path, zero_stage: int
) -> None:
    undisturbed = bfloat16_config(tmp_path / "undisturbed", zero_stage)
    whole = await run_trainer(undisturbed, num_ranks=2)
    config = bfloat16_config(tmp_path / "run", zero_stage)
    killed = await run_trainer(config, num_ranks=2, until=lambda message: isinstance(message, Checkpointed))
    resumed = await run_trainer(config, num_ranks=2, num_versions=10)
    # A step may have been taken before the checkpoint stood; it is taken again.
    assert len(resumed.losses()) == 2
    assert killed.losses()[:2] + resumed.losses() == whole.losses()
    expected, found = exported(undisturbed), exported(config)
    for name, weight in expected.items():
        assert weight.dtype == torch.bfloat16, name
        assert torch.equal(weight, found[name]), name
    # Eight bits of mantissa in the forward pass: the four losses are of the order of 0.1.
    assert whole.losses() == pytest.approx(in_float32.losses(), abs=0.01)
    norms = [
        [message.metrics["grad_norm"] for message in run.told if isinstance(message, StepDone)]
        for run in (whole, in_float32)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=0.1)
