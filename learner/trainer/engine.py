"""The policy under DeepSpeed: gradients, updates, what ranks agree on, and its state on disk.

The only importer of deepspeed.
"""

import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import AutoTokenizer

from dcpo_async.config import RunConfig, merged
from dcpo_async.errors import TrainerError
from learner.policy.fitting import fit_to_model
from learner.policy.head import TokenLoss, TokenScores
from learner.policy.model import PolicyModel
from learner.policy.packing import MicroBatch, pack_sequences
from learner.trainer.checkpoint import CheckpointLayout, load_checkpoint, save_checkpoint, verified_checkpoint
from learner.weights.checkpoint_format import checkpoint_views, tied_checkpoint_names
from learner.weights.layout import Layout, Schema
from learner.weights.loading import loaded_model

log = logging.getLogger(__name__)

T = TypeVar("T")


class TrainEngine:
    """Builds the model and its optimizer, and joins the ranks' process group.

    Attributes:
        rank, num_ranks: who this is among the processes that train.
        device: of the model.
        dtype: of the forward pass and of published weights.
        tokenizer: of the model.
        schema: of the weights that are published.
        micro_batch_tokens: of a forward pass.
    """

    def __init__(self, config: RunConfig) -> None:
        deepspeed.utils.logger.setLevel(logging.WARNING)
        # On a CPU DeepSpeed would compile an all-reduce of its own at its first start: a minute, and a compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        deadline = timedelta(seconds=config.training.step_timeout_seconds)
        deepspeed.init_distributed(backend, timeout=deadline, verbose=False)
        self._settings, self.dtype = config.training, forward_dtype(config)
        model = loaded_model(config.model.path, self.dtype)
        # Before anything wraps or partitions the model.
        views, tied = checkpoint_views(model), tied_checkpoint_names(model)
        if config.model.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        policy = PolicyModel(model, config.sampling.temperature).train()
        optimizer = torch.optim.AdamW(
            policy.parameters(),
            lr=self._settings.learning_rate,
            betas=self._settings.betas,
            weight_decay=self._settings.weight_decay,
            fused=True,
        )
        self._deepspeed, *_ = deepspeed.initialize(model=policy, optimizer=optimizer, config=deepspeed_settings(config))
        fit_to_model(self._deepspeed.module, self._deepspeed.device)
        self.tokenizer = AutoTokenizer.from_pretrained(config.model.path)
        self.device: torch.device = self._deepspeed.device
        self.rank, self.num_ranks = dist.get_rank(), dist.get_world_size()
        self.micro_batch_tokens = micro_batch_tokens(config, self.device.type)
        # Small integers are agreed on between CPUs, so that no agreement waits for a GPU.
        self._host_group = dist.new_group(backend="gloo", timeout=deadline)
        self.schema = Schema(layout=Layout.of(self.model, self.dtype), views=views, tied=tied)
        self._layout = CheckpointLayout(
            num_ranks=self.num_ranks, zero_stage=self._deepspeed.zero_optimization_stage(), dtype=str(self.dtype)
        )

    @property
    def model(self) -> Any:
        """The Hugging Face model inside."""
        return self._deepspeed.module.model

    # ---- a step

    @property
    def is_packed(self) -> bool:
        """Whether a micro-batch may have several sequences."""
        policy: PolicyModel = self._deepspeed.module
        return policy.is_packed

    def policy(self, batch: MicroBatch, loss: TokenLoss | None, *, is_whole: bool = False) -> TokenScores:
        """Scores of a micro-batch's response tokens under the current weights; see `PolicyModel.forward`."""
        scores: TokenScores = self._deepspeed(batch, loss, is_whole=is_whole)
        return scores

    def score(self, token_ids: Sequence[int]) -> Tensor:
        """Float32 log-probs [tokens - 1] at temperature 1 of each token given all before it; all ranks call it.

        The forward pass is the one that trains, without its dropout; nothing of the training's state changes.
        """
        policy: PolicyModel = self._deepspeed.module
        batch = pack_sequences([token_ids]).on(self.device)
        temperature, policy.temperature = policy.temperature, 1.0
        self._deepspeed.eval()
        try:
            with torch.no_grad():
                logprobs = self.policy(batch, None).logprobs
        finally:
            self._deepspeed.train()
            policy.temperature = temperature
        return logprobs

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add the gradient of a micro-batch's share of the loss; after the last one of a step, `update` comes."""
        self._deepspeed.set_gradient_accumulation_boundary(is_last)
        # DeepSpeed takes the mean over ranks; the token weights want the sum.
        self._deepspeed.backward(loss * self.num_ranks, scale_wrt_gas=False)

    def update(self, step: int) -> float | None:
        """Clip and update the weights; return the norm before clipping, None if it was not finite: no update then."""
        engine = self._deepspeed
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
        log.warning("step %d: the gradient is not finite, the update is skipped", step)
        return None

    def set_learning_rate(self, step: int) -> float:
        """Set the rate of the update that leads from `step` to `step + 1`, and return it."""
        rate = learning_rate(step, self._settings.learning_rate, self._settings.warmup_steps)
        for group in self._deepspeed.optimizer.param_groups:
            group["lr"] = rate
        return rate

    # ---- what ranks agree on

    def largest_of_ranks(self, value: int) -> int:
        """The largest value that a rank has; all call it."""
        if self.num_ranks == 1:
            return value
        tensor = torch.tensor(value)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._host_group)
        return int(tensor)

    def add_over_ranks(self, values: Tensor) -> None:
        """Replace values by their sums over all ranks, which all call it."""
        dist.all_reduce(values)

    def failing_together(self, step: int, work: Callable[[], T]) -> T:
        """Do a rank's local work; if it fails on one rank, all raise TrainerError instead of waiting for that one."""
        if self._layout.zero_stage == 3 or self.num_ranks == 1:
            # The forward pass of ZeRO-3 is itself a collective: the others hear of it from torchrun, which ends them.
            return work()
        failure, result = None, None
        try:
            result = work()
        except Exception as error:
            failure = error
        failed_rank = self.largest_of_ranks(-1 if failure is None else self.rank)
        if failed_rank >= 0:
            raise TrainerError(f"rank {failed_rank} failed in step {step}, and all ranks end") from failure
        assert result is not None
        return result

    # ---- state

    def save(self, folder: Path, step: int, config_digest: str) -> None:
        """Write the checkpoint of a step; all ranks call it."""
        save_checkpoint(self._deepspeed, folder, step, self.rank, config_digest, self._layout)

    def load(self, folder: Path, step: int, config_digest: str) -> None:
        """Load the checkpoint of a step, every byte verified; all ranks call it. Raises CheckpointError."""
        if self.rank == 0 and verified_checkpoint(folder, step, self._layout).config_digest != config_digest:
            log.warning("settings have changed since the checkpoint of step %d was written", step)
        dist.barrier(group=self._host_group)
        load_checkpoint(self._deepspeed, folder, step)

    def close(self) -> None:
        """Leave the process group; a rank that failed must not, since the others would wait for it."""
        dist.destroy_process_group()


def learning_rate(step: int, peak: float, warmup_steps: int) -> float:
    """Return the rate of the update that leads from `step` to `step + 1`: linear warm-up, then constant.

    A function of the step alone, so that a resumed run needs no scheduler state.

    Args:
        step: optimizer steps done before, from 0.
        peak: the rate after the warm-up.
        warmup_steps: updates until the peak; 0 for none.

    Example: peak 1e-6 with 10 warm-up steps gives 1e-7 at step 0 and 1e-6 from step 9 on.
    """
    return peak * min(1.0, (step + 1) / warmup_steps) if warmup_steps else peak


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


def micro_batch_tokens(config: RunConfig, device: str) -> int:
    """Tokens of a forward pass on a device of this type."""
    tokens = config.training.micro_batch_tokens
    if tokens != "auto":
        return tokens
    # A CPU is as fast with 2,048, at a fifth of the memory.
    return 2048 if device == "cpu" else 16384


def forward_dtype(config: RunConfig) -> torch.dtype:
    """Type of the forward pass and of published weights."""
    automatic = "bfloat16" if torch.cuda.is_available() else "float32"
    name = automatic if config.model.dtype == "auto" else config.model.dtype
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[name]
