"""A rank that goes on from checkpoints with an engine of its own for each; a test starts it: `CONFIG FOLDER`."""

import asyncio
import sys
from pathlib import Path
from unittest.mock import patch

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from torch import Tensor

from dcpo_async.config import RunConfig
from dcpo_async.protocol.messages import Message
from learner.checkpoints.folder import publish_checkpoint, writing_folder
from learner.checkpoints.saving import Checkpoints
from learner.policy.packing import pack
from learner.trainer.engine import TrainEngine
from tests.learner.trainer.test_trainer import fixed_samples


def train(engine: TrainEngine, step: int) -> Tensor:
    """One update on a sample or two of this rank's own; returns log-probs."""
    torch.manual_seed(step)
    batch = pack(fixed_samples(step)[engine.rank : engine.rank + 4 : 2])
    scores = engine.policy(batch, lambda logprobs, _tokens: -logprobs.mean())
    engine.backward(scores.loss, is_last=True)
    engine.set_learning_rate(step)
    assert engine.update(step) is not None
    return scores.logprobs


def state_of(engine: TrainEngine) -> list[Tensor]:
    """All that this rank has: weights or its slices of them, their float32 form, moments, counts of updates."""
    module = engine._deepspeed.module
    found = [parameter.detach().clone() for parameter in module.parameters()]
    found += [parameter.ds_tensor.clone() for parameter in module.parameters() if hasattr(parameter, "ds_tensor")]
    return (
        found + [buffer.clone() for buffer in module.buffers()] + tensors_of(engine._deepspeed.optimizer.state_dict())
    )


def tensors_of(part: object) -> list[Tensor]:
    if isinstance(part, Tensor):
        return [part.clone()]
    inner = part.values() if isinstance(part, dict) else part if isinstance(part, list | tuple) else ()
    return [tensor for value in inner for tensor in tensors_of(value)]


def assert_equal(found: list[Tensor], expected: list[Tensor], where: str) -> None:
    assert len(found) == len(expected) > 0, where
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other), where


async def main(config: RunConfig, folder: Path) -> None:
    """Train, take a checkpoint as it is and as it was before; go on from each, and compare every bit."""

    async def tell(message: Message) -> None:
        assert message.kind == "checkpointed", message

    engine = TrainEngine(config)
    checkpoints = Checkpoints(config, engine, tell)
    checkpoints.begin(0)
    for step in (0, 1):
        train(engine, step)
        checkpoints.offer(step + 1)
    now = folder / "checkpoints"
    expected = state_of(engine)
    before = folder / "before"
    handover, engine._deepspeed.checkpoint_engine = engine._deepspeed.checkpoint_engine, TorchCheckpointEngine()
    engine._deepspeed.save_checkpoint(str(before), writing_folder(before, 2).name, save_latest=False)
    engine._deepspeed.checkpoint_engine = handover
    if engine.rank == 0:
        publish_checkpoint(before, 2, config.digest(), engine.layout, {})
    engine.largest_of_ranks(0)
    # The copy was taken before this update and is written during it.
    logprobs = train(engine, 2)
    later = state_of(engine)
    await checkpoints.whole()
    for path in (now, before):
        # In the process group of the first one.
        with patch("learner.trainer.engine.join_ranks"):
            again = TrainEngine(config)
        again.load(path, 2, config.digest())
        assert_equal(state_of(again), expected, f"{path}, loaded")
        assert torch.equal(train(again, 2), logprobs)
        assert_equal(state_of(again), later, f"{path}, a step later")
    training = config.training.model_copy(update={"weight_decay": 0.3, "betas": (0.8, 0.9), "gradient_clip": 0.25})
    with patch("learner.trainer.engine.join_ranks"):
        other = TrainEngine(config.model_copy(update={"training": training}))
    other.load(now, 2, config.digest())
    optimizer = other._deepspeed.optimizer
    for group in optimizer.param_groups:
        assert (group["weight_decay"], group["betas"]) == (0.3, (0.8, 0.9)), group
    assert getattr(optimizer, "clip_grad", 0.25) == 0.25, "the checkpoint's gradient_clip"
    if engine.rank == 0:
        sizes = [sum(file.stat().st_size for file in path.rglob("*.pt")) for path in (now, before)]
        (folder / "sizes").write_text(f"{sizes[0]} {sizes[1]} {sum(p.numel() for p in engine.model.parameters())}")
    engine.close()


if __name__ == "__main__":
    given = RunConfig.model_validate_json(Path(sys.argv[1]).read_bytes())
    asyncio.run(main(given.model_copy(update={"folder": Path(sys.argv[2])}), Path(sys.argv[2])))
