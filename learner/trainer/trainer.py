"""One trainer rank: asks for its shard of each step's batch, trains with DeepSpeed, publishes, checkpoints.

Started by the launcher as `torchrun … -m learner.trainer.trainer --config FILE --coordinator ADDRESS --run-id ID`.
"""

import argparse
import asyncio
import dataclasses
import logging
import math
import os
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from dcpo_async.algorithm import BOUNDS, TokenDiagnostics, clipped_loss
from dcpo_async.config import RunConfig
from dcpo_async.durable import write_json
from dcpo_async.errors import DcpoError, TrainerError
from dcpo_async.processes import die_with_parent
from dcpo_async.protocol.messages import (
    Checkpointed,
    OldLogprobs,
    Published,
    StepDone,
    TrainerFinished,
    concatenated,
)
from dcpo_async.records import TrainingSample
from dcpo_async.transport.zmq_channel import DealerChannel
from dcpo_async.weights.store import prune, remove_unfinished, write_snapshot
from learner.trainer.checkpoint import (
    CheckpointLayout,
    complete_steps,
    load_checkpoint,
    remove_superseded,
    save_checkpoint,
    verified_checkpoint,
)
from learner.trainer.coordinator_link import CoordinatorLink, samples_of
from learner.trainer.packing import MicroBatch, pack, plan_micro_batches
from learner.trainer.policy import PolicyModel, correction
from learner.trainer.schedule import learning_rate
from learner.trainer.step_sums import StepSums
from learner.weights.gather import export_weights, gather_weights, tied_names, write_skeleton

logger = logging.getLogger("learner.trainer.trainer")

BATCH_DEADLINE_SECONDS = 24 * 3600.0
"""Actors decide how long a batch takes, and all may be away for a night; the wait is logged meanwhile."""

T = TypeVar("T")


class Trainer:
    """A rank's state: the engine, the step it has reached, and its link to the coordinator."""

    def __init__(self, config: RunConfig, engine: Any, link: CoordinatorLink) -> None:
        self.config = config
        self.engine = engine
        self.link = link
        self.step = self.checkpointed_step = 0
        self.wait_seconds = 0.0
        self.rank, self.num_ranks = link.rank, link.num_ranks
        self.correction = correction(config.algorithm)
        self.dtype = forward_dtype(config)
        # Small integers are agreed on between CPUs, so that no agreement waits for a GPU.
        self.host_group = dist.new_group(backend="gloo", timeout=collective_deadline(config))
        self.layout = CheckpointLayout(
            num_ranks=self.num_ranks, zero_stage=engine.zero_optimization_stage(), dtype=str(self.dtype)
        )

    async def train(self) -> None:
        """Train until the coordinator says that the run has reached its end."""
        self.resume()
        await self.link.join()
        await self.publish()
        while batch := await self.next_batch():
            for samples in batch:
                await self.report(self.train_step(samples))
                if self.step % self.config.lag.publish_interval == 0:
                    await self.publish()
                if self.step % self.config.checkpoint.interval_steps == 0:
                    await self.checkpoint()
        await self.finish()

    def train_step(self, samples: Sequence[TrainingSample]) -> dict[str, float]:
        """Take one optimizer step on this rank's shard, and return the metrics of the whole step."""
        started = time.monotonic()
        rate = self.set_learning_rate()
        # A function of the step alone: a resumed run has the random numbers of one that never stopped.
        torch.manual_seed((self.config.seed << 32) + self.step)
        sums = StepSums(self.engine.device)
        plan = self.plan(samples)
        for number, chosen in enumerate(plan, start=1):
            self.engine.set_gradient_accumulation_boundary(number == len(plan))
            self.forward_backward_step([samples[i] for i in chosen], sums)
        gradient_norm = self.apply_gradients()
        self.step += 1
        self.link.step = self.step
        dist.all_reduce(sums.values)
        metrics = sums.summary()
        seconds = time.monotonic() - started
        return metrics | {
            "grad_norm": gradient_norm if gradient_norm is not None else 0.0,
            "grad_clipped": float((gradient_norm or 0.0) > self.config.training.gradient_clip),
            "step_skipped": float(gradient_norm is None),
            "learning_rate": rate,
            "step_seconds": seconds,
            "wait_seconds": self.wait_seconds,
            "tokens_per_second": metrics["tokens"] / seconds,
        }

    def forward_backward_step(self, samples: Sequence[TrainingSample], sums: StepSums) -> None:
        """Add one micro-batch's share of the gradient; token weights are those of the whole step."""
        loss = self.failing_together(lambda: self.loss(samples, sums))
        # DeepSpeed takes the mean over ranks; the token weights want the sum.
        self.engine.backward(loss * self.num_ranks, scale_wrt_gas=False)

    def loss(self, samples: Sequence[TrainingSample], sums: StepSums) -> Tensor:
        """Return the micro-batch's share of the step's loss, and add its diagnostics to the sums."""
        algorithm = self.config.algorithm
        batch = pack(samples).on(self.engine.device)
        logprobs, entropy = self.policy(batch)
        behavior = batch.behavior_logprobs
        old = batch.old_logprobs if algorithm.old == "proximal" else behavior
        out = clipped_loss(
            logprobs,
            old,
            batch.advantages,
            batch.token_weights,
            bounds=partial(
                BOUNDS[algorithm.clip],
                epsilon_low=algorithm.epsilon_low,
                epsilon_high=algorithm.epsilon_high,
                max_ratio=algorithm.max_ratio,
            ),
            max_ratio=algorithm.max_ratio,
            importance_weights=None if self.correction is None else self.correction(old, behavior),
            sequences=batch.rows if algorithm.ratio == "sequence" else None,
        )
        diagnostics = TokenDiagnostics.of_tokens(
            logprobs, old, behavior, batch.advantages, out, entropy, batch.token_lags
        )
        sums.add(samples, batch, out.loss, diagnostics)
        return out.loss

    def policy(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies of a micro-batch's response tokens under the current weights."""
        logprobs, entropy = self.engine(batch.input_ids, batch.rows, batch.columns, batch.token_ids)
        return logprobs, entropy

    def apply_gradients(self) -> float | None:
        """Clip and update the weights; return the norm before clipping, None if it was not finite: no update then."""
        engine = self.engine
        if engine.zero_optimization() or engine.bfloat16_enabled():
            engine.step()
            norm = float(engine.get_global_grad_norm()) if engine.was_step_applied() else math.nan
        else:
            # Without ZeRO and in float32 DeepSpeed clips, but neither tells the norm nor looks whether it is finite.
            gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients))
            if math.isfinite(norm):
                engine.step()
            else:
                engine.zero_grad()
        if math.isfinite(norm):
            return norm
        logger.warning("step %d: the gradient is not finite, the update is skipped", self.step)
        return None

    def set_learning_rate(self) -> float:
        """Set the rate of the coming update, and return it."""
        settings = self.config.training
        rate = learning_rate(self.step, settings.learning_rate, settings.warmup_steps)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def plan(self, samples: Sequence[TrainingSample]) -> list[list[int]]:
        """This rank's micro-batches, filled up with empty ones: in a collective every rank has to take part."""
        plan = plan_micro_batches(samples, self.config.training.micro_batch_tokens)
        num_micro_batches = self.largest_of_ranks(max(1, len(plan)))
        return plan + [[] for _ in range(num_micro_batches - len(plan))]

    def largest_of_ranks(self, value: int) -> int:
        """Return the largest value that a rank has."""
        if self.num_ranks == 1:
            return value
        tensor = torch.tensor(value)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.host_group)
        return int(tensor)

    def failing_together(self, work: Callable[[], T]) -> T:
        """Do a rank's local work; if it fails on one rank, all raise TrainerError instead of waiting for that one."""
        if self.layout.zero_stage == 3 or self.num_ranks == 1:
            # The forward pass of ZeRO-3 is itself a collective: the others hear of it from torchrun, which ends them.
            return work()
        failure, result = None, None
        try:
            result = work()
        except Exception as error:
            failure = error
        failed_rank = self.largest_of_ranks(-1 if failure is None else self.rank)
        if failed_rank >= 0:
            raise TrainerError(f"rank {failed_rank} failed in step {self.step}, and all ranks end") from failure
        assert result is not None
        return result

    async def next_batch(self) -> list[list[TrainingSample]]:
        """This rank's shards of the batch's updates: fewer at the run's last step, none when it has ended."""
        algorithm = self.config.algorithm
        started, updates = time.monotonic(), algorithm.updates_per_batch
        shards: list[list[TrainingSample]] = []
        for step in range(self.step, self.step - self.step % updates + updates):
            answer = await self.link.ask_for_shard(step, BATCH_DEADLINE_SECONDS)
            if isinstance(answer.message, TrainerFinished):
                break
            shards.append(samples_of(answer))
        self.wait_seconds = (time.monotonic() - started) / max(1, len(shards))
        if algorithm.old == "proximal":
            return [await self.anchored(step, shard) for step, shard in enumerate(shards, start=self.step)]
        return shards

    async def anchored(self, step: int, samples: list[TrainingSample]) -> list[TrainingSample]:
        """The samples with old log-probs; those that the ledger does not have are computed and handed over."""
        is_missing = [bool(np.isnan(sample.old_logprobs).any()) for sample in samples]
        if not self.largest_of_ranks(int(any(is_missing))):
            return samples
        samples = [
            dataclasses.replace(sample, old_logprobs=logprobs) if missing else sample
            for sample, logprobs, missing in zip(samples, self.logprobs(samples), is_missing, strict=True)
        ]
        message = OldLogprobs(
            step=step,
            rank=self.rank,
            positions=tuple(sample.position for sample in samples),
            indices=tuple(sample.index for sample in samples),
            lengths=tuple(len(sample.token_ids) for sample in samples),
        )
        arrays = {"old_logprobs": concatenated([sample.old_logprobs for sample in samples], "<f4")}
        await self.link.hand_over(message, arrays)
        return samples

    @torch.no_grad()
    def logprobs(self, samples: Sequence[TrainingSample]) -> list[NDArray[np.float32]]:
        """Log-probs of each sample's tokens under the current weights, float32 [tokens]."""
        found = [np.empty(0, dtype=np.float32) for _ in samples]
        for chosen in self.plan(samples):
            logprobs, _ = self.policy(pack([samples[i] for i in chosen]).on(self.engine.device))
            parts = logprobs.cpu().split([len(samples[i].token_ids) for i in chosen])
            for i, part in zip(chosen, parts, strict=True):
                found[i] = part.numpy()
        return found

    async def report(self, metrics: Mapping[str, float]) -> None:
        """Tell the coordinator that a step is done, in finite numbers: no others can be sent."""
        if self.rank == 0:
            finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
            await self.link.tell(StepDone(step=self.step, metrics=finite))

    async def publish(self) -> None:
        """Write the weights as a new version, and tell the coordinator once it stands."""
        weights = self.gather_weights()
        if self.rank == 0:
            grant = await self.link.ask_for_version(self.config.training.step_timeout_seconds)
            store = weights_folder(self.config)
            write_snapshot(
                store,
                weights_version=grant.weights_version,
                run_id=self.link.run_id,
                incarnation=grant.incarnation,
                step=self.step,
                tensors=weights,
                tied=tied_names(self.model),
                skeleton_folder=skeleton_folder(self.config),
            )
            prune(store, self.config.lag.keep_versions)
            await self.link.tell(Published(weights_version=grant.weights_version, step=self.step))

    def gather_weights(self) -> dict[str, Tensor]:
        """The weights on rank 0; empty on the others, which have to call it all the same."""
        gather = deepspeed.zero.GatheredParameters if self.layout.zero_stage == 3 else nullcontext
        return gather_weights(self.model, self.dtype, gather, keep=self.rank == 0)

    @property
    def model(self) -> Any:
        """The Hugging Face model inside the engine."""
        return self.engine.module.model

    async def checkpoint(self) -> None:
        """Write a checkpoint, remove those it makes superfluous, and tell the coordinator which ones stand."""
        folder, settings = checkpoints_folder(self.config), self.config.checkpoint
        save_checkpoint(self.engine, folder, self.step, self.rank, self.config.digest(), self.layout)
        self.checkpointed_step = self.step
        if self.rank == 0:
            retained = remove_superseded(folder, settings.keep_last, settings.keep_every_steps)
            await self.link.tell(Checkpointed(step=self.step, retained=retained))

    def resume(self) -> None:
        """Load the newest checkpoint, if there is one."""
        folder = checkpoints_folder(self.config)
        step = max(complete_steps(folder), default=0)
        if step == 0:
            return
        if self.rank == 0:
            verified_checkpoint(folder, step, self.layout)
        dist.barrier(group=self.host_group)
        load_checkpoint(self.engine, folder, step)
        self.step = self.checkpointed_step = self.link.step = step
        logger.info("resumed from step %d", step)

    async def finish(self) -> None:
        """Leave a last checkpoint and a model folder."""
        if self.step > self.checkpointed_step:
            await self.checkpoint()
        weights = self.gather_weights()
        if self.rank == 0:
            export_weights(self.config.folder / "export", skeleton_folder(self.config), weights)


def main() -> int:
    """Run one rank; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="learner.trainer.trainer", description="One trainer rank; torchrun starts it."
    )
    parser.add_argument("--config", type=Path, required=True, help="resolved configuration, JSON")
    parser.add_argument("--coordinator", required=True, help="address of the coordinator")
    parser.add_argument("--run-id", required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    # torchrun starts ranks in sessions of their own: killing it would leave them training.
    die_with_parent()
    config = RunConfig.model_validate_json(arguments.config.read_text())
    try:
        asyncio.run(run_rank(config, arguments.coordinator, arguments.run_id))
    except Exception as error:
        exit_code = error.exit_code if isinstance(error, DcpoError) else 1
        logger.error("%s: %s", type(error).__name__, error, exc_info=exit_code == 1)
        leave_error(config.folder, str(error) or type(error).__name__, exit_code)
        return exit_code
    return 0


def leave_error(folder: Path, message: str, exit_code: int) -> None:
    """Tell the launcher why this rank ends; of several ranks the first one counts, the others suffer from it."""
    path = folder / "trainer_error.json"
    if not path.exists():
        write_json(path, {"message": message.partition("\n")[0], "exit_code": exit_code})


async def run_rank(config: RunConfig, coordinator: str, run_id: str) -> None:
    """Build a rank, train to the end of the run, and let go of everything.

    Raises:
        TrainerError: a rank failed, or did not come to a collective in time.
    """
    engine, tokenizer = build_engine(config)
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    if rank == 0:
        remove_unfinished(weights_folder(config))
        write_skeleton(skeleton_folder(config), engine.module.model, tokenizer, Path(config.model.path))
    # A rank that starts again must not be taken for the connection of the one that died.
    identity = f"trainer-{rank}-{uuid.uuid4().hex}".encode()
    channel = DealerChannel(coordinator, identity, config.network.max_message_bytes)
    try:
        link = CoordinatorLink(channel, coordinator, run_id, rank, num_ranks)
        await Trainer(config, engine, link).train()
        dist.destroy_process_group()
    except RuntimeError as error:
        # torch.distributed says RuntimeError to a peer that is gone and to a deadline that has passed.
        raise TrainerError(f"rank {rank} of {num_ranks}: {error}") from error
    finally:
        channel.close()


def build_engine(config: RunConfig) -> tuple[Any, Any]:
    """Return the DeepSpeed engine around the policy, and the tokenizer; joins the ranks' process group."""
    deepspeed.utils.logger.setLevel(logging.WARNING)
    # On a CPU DeepSpeed would compile an all-reduce of its own at its first start: a minute, and it takes a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    deepspeed.init_distributed(backend, timeout=collective_deadline(config), verbose=False)
    settings = config.training
    model = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=forward_dtype(config))
    if config.model.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    policy = PolicyModel(model, config.sampling.temperature).train()
    optimizer = torch.optim.AdamW(
        policy.parameters(),
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    engine, *_ = deepspeed.initialize(model=policy, optimizer=optimizer, config=deepspeed_settings(config))
    return engine, AutoTokenizer.from_pretrained(config.model.path)


def deepspeed_settings(config: RunConfig) -> dict[str, Any]:
    """DeepSpeed's configuration: what our settings say, under the user's `training.deepspeed`."""
    settings = config.training
    ours: dict[str, Any] = {
        # Micro-batches are ours: their number differs from step to step.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.gradient_clip,
        "zero_optimization": {"stage": settings.zero_stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": sys.maxsize,
    }
    if forward_dtype(config) == torch.bfloat16:
        ours["bf16"] = {"enabled": True}
        if settings.zero_stage > 0:
            # Hundreds of small micro-batch gradients would drown in bfloat16's 8 bits.
            ours["data_types"] = {"grad_accum_dtype": "fp32"}
    return merged(ours, settings.deepspeed)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return both, table by table; where both speak, above."""
    result = dict(below)
    for key, value in above.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return result


def forward_dtype(config: RunConfig) -> torch.dtype:
    """Type of the forward pass and of published weights."""
    automatic = "bfloat16" if torch.cuda.is_available() else "float32"
    name = automatic if config.model.dtype == "auto" else config.model.dtype
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[name]


def collective_deadline(config: RunConfig) -> timedelta:
    """How long a rank waits for the others."""
    return timedelta(seconds=config.training.step_timeout_seconds)


def checkpoints_folder(config: RunConfig) -> Path:
    """Where the run's checkpoints stand."""
    return config.folder / "checkpoints"


def weights_folder(config: RunConfig) -> Path:
    """The weight store."""
    return config.folder / "weights"


def skeleton_folder(config: RunConfig) -> Path:
    """Configuration and tokenizer of the model, without weights."""
    return config.folder / "skeleton"


if __name__ == "__main__":
    sys.exit(main())
