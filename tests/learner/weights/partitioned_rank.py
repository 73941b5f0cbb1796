"""Two ranks that read models as ZeRO-3 partitions them, and whole; a test starts them: `FOLDER`.

Each compares its own part of the weights, and what a training step makes of them, bit by bit.
"""

import os
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deepspeed
import torch
from torch import Tensor

from dcpo_async.config import RunConfig
from dcpo_async.errors import ConfigError
from learner.trainer import engine as engine_module
from learner.trainer.engine import TrainEngine, join_ranks, local_device
from learner.trainer.settings import deepspeed_settings
from learner.trainer.trainer import Trainer
from learner.weights.checkpoint_format import checkpoint_views, tied_checkpoint_names
from learner.weights.layout import Layout, own_slices, slice_places
from learner.weights.loading import loaded_model
from learner.weights.partitioning import read_model
from tests.learner.trainer.test_trainer import fixed_samples


def main() -> None:
    """Do what the words say: `weights` of all models, `refusals` of broken ones, or `steps` with and without."""
    folder, what = Path(sys.argv[1]), sys.argv[2]
    join_ranks(timedelta(minutes=5))
    rank = int(os.environ["RANK"])
    for path in sorted(folder.glob("model-*")):
        if what == "refusals":
            compare_refusals(path)
            continue
        # Steps take seconds: of one model in both types, of the others in that of GPUs.
        is_short = what == "steps" and path.name != "model-qwen2"
        for name in ("bfloat16",) if is_short else ("float32", "bfloat16"):
            config = RunConfig(
                folder=folder / "run",
                model={"path": str(path), "dtype": name, "gradient_checkpointing": False},
                training={"zero_stage": 3, "micro_batch_tokens": 128, "learning_rate": 1e-2},
                adapter={"rank": 4} if "adapter" in path.name else {},
            )
            if what == "weights":
                compare_weights(config, rank)
            else:
                compare_steps(config)
            print(f"rank {rank}: {what} of {path.name} in {name} are the same", flush=True)
    deepspeed.comm.barrier()


def compare_weights(config: RunConfig, rank: int) -> None:
    """Each rank's slices of the model as it is read, and all else of it, against the model as it is loaded whole."""
    path, dtype = config.model.path, getattr(torch, config.model.dtype)
    whole = loaded_model(path, dtype)
    model = read_model(path, dtype, deepspeed_settings(config, 2, on_gpus=False), local_device())
    assert checkpoint_views(model) == checkpoint_views(whole)
    assert tied_checkpoint_names(model) == tied_checkpoint_names(whole)
    assert Layout.of(model, dtype) == Layout.of(whole, dtype)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in whole.named_parameters()]
    expected, parts = dict(whole.named_parameters()), list(own_slices(model))
    assert [(part.name, part.start, len(part.values)) for part in parts] == slice_places(model, rank)
    assert {part.name for part in parts} == expected.keys()
    for part in parts:
        own = expected[part.name].detach().reshape(-1)[part.start : part.start + len(part.values)]
        assert bits(part.values).equal(bits(own)), part.name
        assert part.values.dtype == own.dtype
    # Tables that are computed, such as rotary_emb.inv_freq, are in no file.
    buffers = dict(whole.named_buffers())
    assert buffers.keys() == dict(model.named_buffers()).keys()
    for name, buffer in model.named_buffers():
        assert bits(buffer).equal(bits(buffers[name])), name
        assert buffer.dtype == buffers[name].dtype


def compare_refusals(path: Path) -> None:
    """A broken folder is refused in the words that it is refused in where a model is loaded whole."""
    config = RunConfig(training={"zero_stage": 3})
    refusals = []
    for read in (
        lambda: loaded_model(path, torch.float32),
        lambda: read_model(path, torch.float32, deepspeed_settings(config, 2, on_gpus=False), local_device()),
    ):
        try:
            read()
        except ConfigError as error:
            refusals.append(str(error))
    assert len(refusals) == 2
    assert refusals[0] == refusals[1]
    print(refusals[0], flush=True)


def compare_steps(config: RunConfig) -> None:
    """Two training steps of the model as it is read, against those of one that each rank has had whole before."""
    engine_module.join_ranks = lambda deadline: None
    found = trained(config)
    engine_module.read_model = lambda path, dtype, settings, device: loaded_model(path, dtype)
    try:
        expected = trained(config)
    finally:
        engine_module.read_model = read_model
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert bits(value).equal(bits(expected[name])), name


def trained(config: RunConfig) -> dict[str, Tensor]:
    """All weights after two steps, and the steps' losses."""
    engine = TrainEngine(config)
    trainer = Trainer(config, engine, SimpleNamespace(tell=None), publication=None)  # type: ignore[arg-type]
    before = gathered(engine)
    losses = [trainer.train_step(fixed_samples(step)[engine.rank :: engine.num_ranks])["loss"] for step in range(2)]
    after = gathered(engine)
    assert any(not bits(after[name]).equal(bits(tensor)) for name, tensor in before.items())
    return after | {"losses": torch.tensor(losses, dtype=torch.float64)}


def gathered(engine: Any) -> dict[str, Tensor]:
    """The model's parameters, whole."""
    with deepspeed.zero.GatheredParameters(list(engine.model.parameters())):
        return {name: parameter.detach().clone() for name, parameter in engine.model.named_parameters()}


def bits(tensor: Tensor) -> Tensor:
    """Its bytes, of which -0 and 0 differ, and a NaN is itself."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


if __name__ == "__main__":
    main()
