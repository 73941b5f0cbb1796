"""A rank that goes on from a checkpoint of other ranks; a test starts it: `CONFIG FOLDER FROM_STEP UNTIL_STEP`."""

import asyncio
import logging
import sys
from pathlib import Path

import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from safetensors.torch import save_file
from torch import Tensor

from dcpo_async.config import RunConfig
from dcpo_async.protocol.messages import Message
from learner.checkpoints.saving import Checkpoints
from learner.policy.packing import pack
from learner.trainer.engine import TrainEngine
from tests.learner.trainer.test_trainer import fixed_samples


def train(engine: TrainEngine, step: int) -> float:
    """One update on the same samples whatever the number of ranks; returns the loss of all of them."""
    torch.manual_seed(step)
    samples = [sample for sample in fixed_samples(step) if len(sample.token_ids)]
    batch = pack(samples[engine.rank :: engine.num_ranks])
    scores = engine.policy(batch, lambda logprobs, _tokens: -logprobs.sum() / 300)
    engine.backward(scores.loss, is_last=True)
    engine.set_learning_rate(step)
    assert engine.update(step) is not None
    total = scores.loss.detach().double().reshape(1)
    engine.add_over_ranks(total)
    return float(total)


def merged(engine: TrainEngine) -> dict[str, Tensor]:
    """All that trains, whole, as DeepSpeed itself puts it together; without ZeRO as torch's optimizer has it."""
    found = {}
    if engine.layout.zero_stage in (1, 2):
        # DeepSpeed would do so at the next update.
        engine._deepspeed.optimizer._lazy_init_hp_params_optimizer_state()
    for name, parameter in engine.model.named_parameters():
        if engine.layout.zero_stage:
            found[f"weights of {name}"] = safe_get_full_fp32_param(parameter)
            for kind in ("exp_avg", "exp_avg_sq"):
                found[f"{kind} of {name}"] = safe_get_full_optimizer_state(parameter, kind)
        else:
            found[f"weights of {name}"] = parameter
    for name, parameter in engine.model.named_buffers():
        found[f"buffer {name}"] = parameter
    return {name: tensor.detach().float().clone().contiguous() for name, tensor in found.items()}


async def main(config: RunConfig, folder: Path, from_step: int, until_step: int) -> None:
    """Load, train, take a checkpoint; leave the merged state after loading and at the end, and the losses."""

    async def tell(message: Message) -> None:
        assert message.kind == "checkpointed", message

    engine = TrainEngine(config)
    if from_step:
        engine.load(folder / "checkpoints", from_step, config.digest())
    checkpoints = Checkpoints(config, engine, tell)
    checkpoints.begin(from_step)
    # Before the first update there are no moments.
    first = merged(engine) if from_step else {}
    losses = [train(engine, step) for step in range(from_step, until_step)]
    last = merged(engine)
    await checkpoints.offer_last(until_step)
    await checkpoints.whole()
    if engine.rank == 0:
        save_file(first, folder / f"loaded-{from_step}.safetensors")
        save_file(last, folder / f"written-{until_step}.safetensors")
        with (folder / "losses").open("a") as file:
            file.writelines(f"{loss!r}\n" for loss in losses)
    engine.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    given = RunConfig.model_validate_json(Path(sys.argv[1]).read_bytes())
    where, begin, end = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    asyncio.run(main(given.model_copy(update={"folder": where}), where, begin, end))
