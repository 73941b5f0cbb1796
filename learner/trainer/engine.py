"""The policy under DeepSpeed: gradients, updates, what ranks agree on, and its state on disk."""

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from torch import Tensor
from transformers import AutoTokenizer

from dcpo_async.config import RunConfig, merged
from dcpo_async.errors import CheckpointError, ConfigError, TrainerError
from dcpo_async.run_folder import RunFolder
from dcpo_async.supervision import sign_of_progress
from learner.checkpoints.folder import CheckpointLayout, described_checkpoint, step_folder, verified_checkpoint
from learner.checkpoints.other_ranks import load_resliced
from learner.checkpoints.places import folder_of
from learner.checkpoints.reslicing import SlicedCheckpoint
from learner.checkpoints.snapshot import Snapshot, without_restored
from learner.nodes.meeting import met
from learner.policy.fitting import fit_to_model
from learner.policy.head import TokenLoss, TokenScores
from learner.policy.model import PolicyModel
from learner.policy.packing import MicroBatch, micro_batch_tokens, pack_sequences
from learner.policy.sequence_parallel import SequenceGroup, joined_sequence_group
from learner.ranks import MEETING_PLACE
from learner.trainer.settings import deepspeed_settings, forward_dtype, learning_rate
from learner.weights.adapter_folders import adapter_views
from learner.weights.checkpoint_format import checkpoint_views, tied_checkpoint_names
from learner.weights.layout import Layout, Schema
from learner.weights.partitioning import read_model

log = logging.getLogger(__name__)

T = TypeVar("T")
SETTINGS = ("betas", "weight_decay")
"""Of AdamW, in its groups; the learning rate is set at each step."""
LATE_SECONDS = 60.0
"""Collectives wait so much longer than a step may take: until then the learner has ended the rank that is late."""
START_SECONDS = 900.0
"""A stage of the start, such as the reading of the model, may take so long, or as long as a step if that is more."""


def join_ranks(deadline: timedelta) -> None:
    """Make the process group of all ranks, which DeepSpeed takes over."""
    # On a CPU DeepSpeed would compile an all-reduce of its own at its first start: a minute, and a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    rank, num_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = local_device()
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    backend = "nccl" if on_gpu else "gloo"
    store = met(os.environ[MEETING_PLACE], rank, num_ranks, deadline)
    # A single rank has no peer for which NCCL would have to split its communicator.
    bound = device if on_gpu and num_ranks > 1 else None
    dist.init_process_group(backend, store=store, rank=rank, world_size=num_ranks, timeout=deadline, device_id=bound)
    deepspeed.init_distributed(backend, timeout=deadline, verbose=False)


def local_device() -> torch.device:
    """Where this rank computes."""
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")


class TrainEngine:
    """Builds the model and its optimizer, and joins the ranks' process group.

    Attributes:
        rank, num_ranks: who this is among the processes that train.
        local_rank, num_local: among those of this machine.
        leads_folder: whether this rank names and removes checkpoints, once in each folder of them.
        is_folder_shared: whether that is one and the same for all machines.
        device: of the model.
        dtype: of the forward pass and of published weights.
        has_adapter: an adapter is trained and published, and the model's own weights stay as they are.
        tokenizer: of the model.
        schema: of the weights that are published.
        sequence_group: the ranks that this one shares the tokens of each micro-batch with; None where it has them all.
        micro_batch_tokens: of a forward pass of all ranks that share it.
        reference: scores micro-batches under the model that the run began with; None where the loss has no KL term.
    """

    def __init__(self, config: RunConfig) -> None:
        deepspeed.utils.logger.setLevel(logging.WARNING)
        self._step_seconds = config.training.step_timeout_seconds
        deadline = timedelta(seconds=self._step_seconds + LATE_SECONDS)
        join_ranks(deadline)
        self.rank, self.num_ranks = dist.get_rank(), dist.get_world_size()
        self.local_rank, self.num_local = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
        self._stage, start_seconds = "the start", max(START_SECONDS, self._step_seconds)
        self._sign("the model is read", start_seconds)
        self.settings, self.dtype = config.training, forward_dtype(config)
        self.has_adapter = config.adapter.rank is not None
        settings = deepspeed_settings(config, self.num_ranks, on_gpus=torch.cuda.is_available())
        model = read_model(config.model.path, self.dtype, settings, local_device())
        self.tokenizer = AutoTokenizer.from_pretrained(config.model.path)
        # Before anything wraps the model.
        views, tied = checkpoint_views(model), tied_checkpoint_names(model)
        if self.has_adapter:
            views, tied = adapter_views(model, self.tokenizer, config, writes=self.rank == 0), {}
        # A run's own settings have it decided (learner/sizing/automatic.py).
        if config.model.gradient_checkpointing is not False:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.sequence_group = joined_sequence_group(config.training.sequence_parallel, deadline)
        policy = PolicyModel(model, config.sampling.temperature, self.sequence_group).train()
        optimizer = torch.optim.AdamW(
            [parameter for parameter in policy.parameters() if parameter.requires_grad],
            lr=self.settings.learning_rate,
            betas=self.settings.betas,
            weight_decay=self.settings.weight_decay,
            fused=True,
        )
        # Small integers are agreed on between CPUs, so that no agreement waits for a GPU.
        self._host_group = dist.new_group(backend="gloo", timeout=deadline)
        # Threads that write checkpoints agree on it beside the training, whose ranks may be hours apart from them.
        self._writers_group = dist.new_group(backend="gloo", timeout=timedelta(days=1))
        self.leads_folder, self.is_folder_shared = folder_of(RunFolder(config.folder).checkpoints, self)
        if not self.is_folder_shared:
            settings = merged(settings, {"checkpoint": {"use_node_local_storage": True}})
        self._sign("DeepSpeed takes it over", start_seconds)
        self._deepspeed, *_ = deepspeed.initialize(model=policy, optimizer=optimizer, config=settings)
        fit_to_model(self._deepspeed.module, self._deepspeed.device)
        has_reference, group = config.algorithm.kl_coefficient > 0, self.sequence_group
        self.reference = reference_policy(config, self._deepspeed, group) if has_reference else None
        self.device: torch.device = self._deepspeed.device
        of_rank = micro_batch_tokens(config.training.micro_batch_tokens, self.device.type)
        self.micro_batch_tokens = of_rank * config.training.sequence_parallel
        self.schema = Schema(layout=Layout.of(self.model, self.dtype), views=views, tied=tied)
        self._snapshot = Snapshot()
        self.layout = CheckpointLayout(
            num_ranks=self.num_ranks, zero_stage=self._deepspeed.zero_optimization_stage(), dtype=str(self.dtype)
        )
        self._take_over_checkpoints()
        self._sign("a checkpoint is read", start_seconds)

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
        self._sign("backward")
        # DeepSpeed takes the mean over ranks; the token weights want the sum.
        self._deepspeed.backward(loss * self.num_ranks, scale_wrt_gas=False)

    def update(self, step: int) -> float | None:
        """Clip and update the weights; return the norm before clipping, None if it was not finite: no update then."""
        self._sign("update")
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
        """Set the rate of the update that leads from `step` to `step + 1`, which begins, and return it."""
        self._stage = f"step {step + 1}"
        self._sign("forward")
        rate = learning_rate(step, self.settings)
        for group in self._deepspeed.optimizer.param_groups:
            group["lr"] = rate
        return rate

    # ---- what ranks agree on

    def largest_of_ranks(self, value: int) -> int:
        """The largest value that a rank has; all call it."""
        self._sign("ranks agree")
        if self.num_ranks == 1:
            return value
        tensor = torch.tensor(value)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._host_group)
        return int(tensor)

    def add_over_ranks(self, values: Tensor) -> None:
        """Replace values by their sums over all ranks, which all call it; ranks that share tokens have the same."""
        if self.sequence_group is not None and self.sequence_group.rank > 0:
            values.zero_()
        dist.all_reduce(values)

    def swap_slices(self, own: Tensor | None, sizes: Mapping[int, int]) -> dict[int, Tensor]:
        """Send a slice of the weights to the first machine, or take those of its ranks that send to this one.

        Args:
            own: bytes of a rank of another machine; its partner there is the rank of the same local number.
            sizes: lengths of what comes, by the ranks that send.
        """
        if own is not None:
            dist.send(own.cpu(), self.local_rank, group=self._host_group)
        taken = {rank: torch.empty(size, dtype=torch.uint8) for rank, size in sizes.items()}
        for rank, slice_of_rank in taken.items():
            dist.recv(slice_of_rank, rank, group=self._host_group)
        return taken

    def texts_of_ranks(self, text: str) -> list[str]:
        """Every rank's text, by rank; one thread of each calls it, beside the training."""
        if self.num_ranks == 1:
            return [text]
        texts = [""] * self.num_ranks
        dist.all_gather_object(texts, text, group=self._writers_group)
        return texts

    def failing_together(self, step: int, work: Callable[[], T]) -> T:
        """Do a rank's local work; if it fails on one rank, all raise TrainerError instead of waiting for that one."""
        if self.layout.zero_stage == 3 or self.num_ranks == 1 or self.sequence_group is not None:
            # The forward pass of ZeRO-3, and of ranks that share tokens, is itself a collective: the learner ends the
            # others.
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

    def snapshot(self, writing: Path) -> Snapshot:
        """Copy this rank's part of a checkpoint, over the one before; all ranks call it.

        Args:
            writing: folder in which its files are to be written.

        Returns:
            DeepSpeed's own files, which it loads again.

        Raises:
            MemoryError: the host has no room for it.
        """
        self._sign("its state is copied")
        self._snapshot.clear()
        # Frozen weights are the model's own, which the run keeps anyway.
        self._deepspeed.save_checkpoint(
            str(writing.parent), writing.name, save_latest=False, exclude_frozen_parameters=self.has_adapter
        )
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return self._snapshot

    def load(self, folder: Path, step: int, config_digest: str) -> None:
        """Load the checkpoint of a step, every byte verified; all ranks call it. Raises CheckpointError."""
        if self.leads_folder and verified_checkpoint(folder, step, self.layout).config_digest != config_digest:
            log.warning("settings have changed since the checkpoint of step %d was written", step)
        dist.barrier(group=self._host_group)
        engine, path = self._deepspeed, folder / step_folder(step)
        layout = described_checkpoint(folder, step).layout
        if not layout.is_sliced_as(self.layout):
            written = SlicedCheckpoint(path, layout)
            self._load_module(without_restored(written.model)["module"], engine.module)
            load_resliced(engine, self.rank, self.layout, written, self.texts_of_ranks)
            return
        ours = [{name: group[name] for name in SETTINGS} for group in engine.optimizer.param_groups]
        loaded, _ = engine.load_checkpoint(str(folder), path.name, custom_load_fn=self._load_module)
        if loaded is None:
            raise CheckpointError(f"{path}: DeepSpeed found no model state in it")
        # Stages 1 and 2; ZeRO-3 does so by itself, and without ZeRO the weights are in the file.
        if hasattr(engine.optimizer, "update_lp_params"):
            engine.optimizer.update_lp_params()
        # DeepSpeed and torch keep settings beside the state; those of this start count.
        for group, settings in zip(engine.optimizer.param_groups, ours, strict=True):
            group.update(settings)
        if hasattr(engine.optimizer, "clip_grad"):
            engine.optimizer.clip_grad = self.settings.gradient_clip

    def _sign(self, what: str, next_within: float = 0.0) -> None:
        """Tell the learner where this rank is, and how long that may take: as long as a step unless said otherwise."""
        words = f"rank {self.rank} of {self.num_ranks} in {self._stage} ({what})"
        sign_of_progress(words, next_within or self._step_seconds)

    def _take_over_checkpoints(self) -> None:
        """Have DeepSpeed hand over what it would write; raises ConfigError where settings want it otherwise."""
        engine = self._deepspeed
        if type(engine.checkpoint_engine) is not TorchCheckpointEngine:
            raise ConfigError(
                f"training.deepspeed asks for {type(engine.checkpoint_engine).__name__}: checkpoints are written "
                "beside the training as it is; leave out its settings"
            )
        if self.layout.zero_stage in (1, 2) and not engine.zero_load_from_fp32_weights():
            raise ConfigError(
                "training.deepspeed.zero_optimization.load_from_fp32_weights = false: checkpoints have no other "
                "weights than these; leave it out"
            )
        engine.checkpoint_engine = _Handover(self._snapshot)
        # A full disk would end a rank here. The scripts are part of DeepSpeed's package.
        engine._copy_recovery_script = lambda save_path: None

    def _load_module(self, src: Mapping[str, Any], dst: Any) -> None:
        """Load weights and buffers, without those that are frozen and those that the optimizer restores."""
        missing, unexpected = dst.load_state_dict(src, strict=False)
        parameters = dst.named_parameters(remove_duplicate=False)
        elsewhere = {name for name, weight in parameters if self.layout.zero_stage or not weight.requires_grad}
        lacking = set(missing) - elsewhere
        if lacking or unexpected:
            raise CheckpointError(
                f"the checkpoint is of another model: it lacks {sorted(lacking)}, this one has no {sorted(unexpected)}"
            )

    def close(self) -> None:
        """Leave the process group; a rank that failed must not, since the others would wait for it."""
        dist.destroy_process_group()


class _Handover(TorchCheckpointEngine):  # type: ignore[misc]
    """Loads what DeepSpeed asks for, and copies what it would write."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()
        self._snapshot = snapshot

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Whoever writes the files makes their folders."""

    def save(self, state_dict: Mapping[str, Any], path: str) -> None:
        """Take what is to be in a file."""
        self._snapshot.add(Path(path), without_restored(state_dict))


def reference_policy(config: RunConfig, engine: Any, group: SequenceGroup | None) -> Any:
    """The model that a run begins with, frozen: whole on each rank, or under ZeRO-3 partitioned as the trained one.

    Args:
        engine: that trains.
        group: ranks that share the tokens of a micro-batch.
    """
    dtype = forward_dtype(config)
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": engine.zero_optimization_stage()},
        "bf16": {"enabled": dtype == torch.bfloat16},
    }
    model = read_model(config.model.path, dtype, settings, engine.device)
    policy = PolicyModel(model, config.sampling.temperature, group)
    policy.eval().requires_grad_(False)
    if engine.zero_optimization_stage() == 3:
        partitioned, *_ = deepspeed.initialize(model=policy, config=settings)
        partitioned.eval()
        fit_to_model(policy, engine.device)
        return partitioned
    policy.to(engine.device)
    fit_to_model(policy, engine.device)
    return policy
