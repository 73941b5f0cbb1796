"""Bytes of one trainer rank, by what holds them. Pure; DeepSpeed's part was read in its sources (0.19.8)."""

from dataclasses import dataclass, replace
from typing import Any, Self

from dcpo_async.config import RunConfig
from learner.policy.packing import micro_batch_tokens
from learner.ranks import zero_stage
from learner.sizing.rehearsal import Rehearsal

MASTER_BYTES, ADAM_BYTES, FLOAT32_BYTES = 4, 8, 4
DEFAULT_BUCKET = 500_000_000
"""Elements that DeepSpeed reduces at once, `reduce_bucket_size`."""
MAX_LIVE = 1_000_000_000
"""Elements of partitioned weights that ZeRO-3 keeps gathered, `stage3_max_live_parameters`."""
CUDA_BYTES, NCCL_BYTES = 600_000_000, 1_400_000_000
FRAGMENTATION = 0.05
"""Of what comes and goes, on GPUs with expandable segments."""
PROCESS_BYTES = 90_000_000
"""On a CPU: of the process itself, beside what it was when everything was imported."""
HEAP, HEAP_WITH_ADAPTER = 1.0, 2.0
"""What glibc keeps on a CPU between small blocks, of their peak with checkpointing; adapters lie among them."""
HEAP_OF_KEPT, MOST_OF_KEPT = 0.6, 350_000_000
"""The same of what is kept where nothing is computed again, and the most of it. All five were fitted to the runs of
docs/experiments.md, where tensors lie in huge pages (`dcpo_async.devices`)."""


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Elements of a model.

    Attributes:
        parameters: of all, tied ones once.
        largest: of the largest.
        buffer_bytes: bytes of its buffers.
        adapter: those that are trained, where an adapter is; None where all are.
        heads: of its attention, which ranks that share tokens share too.
    """

    parameters: int
    largest: int
    buffer_bytes: int = 0
    adapter: int | None = None
    heads: int = 1

    @property
    def trained(self) -> int:
        """Elements with gradients and optimizer state; they alone are in checkpoints and versions."""
        return self.parameters if self.adapter is None else self.adapter


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides how much a rank takes.

    Attributes:
        value_bytes: of a weight in the forward pass, 2 or 4.
        micro_batch_tokens: as set.
        length: tokens of the longest sequence.
        rank_tokens: the most that a rank has to train in a step.
        offload: the optimizer's state lies in the host's memory.
        bucket: elements that are reduced at once.
        has_reference: each rank holds the model that the run began with too, for a KL term.
        num_ranks, num_machines: ranks of all machines, which have as many each.
        sequence_parallel: ranks that share the tokens of a micro-batch.
    """

    num_ranks: int
    on_gpus: bool
    value_bytes: int
    zero_stage: int
    checkpointing: bool
    micro_batch_tokens: int
    length: int
    rank_tokens: int
    offload: bool = False
    bucket: int = DEFAULT_BUCKET
    has_reference: bool = False
    num_machines: int = 1
    sequence_parallel: int = 1

    @property
    def tokens(self) -> int:
        """Of the largest micro-batch: a sequence that is longer than the bound goes alone."""
        return max(self.length, self.sequence_parallel * min(self.micro_batch_tokens, self.rank_tokens))

    @property
    def own_tokens(self) -> int:
        """A rank's part of them."""
        return -(-self.tokens // self.sequence_parallel)

    @classmethod
    def of(cls, config: RunConfig, num_ranks: int, num_machines: int = 1, *, on_gpus: bool) -> Self:
        """The plan of a run whose type is decided; with gradient checkpointing where that is left to the machine."""
        training, length = config.training, config.data.max_prompt_tokens + config.sampling.max_response_tokens
        zero: dict[str, Any] = training.deepspeed.get("zero_optimization", {})
        responses = training.groups_per_step * config.sampling.group_size
        return cls(
            num_ranks=num_ranks,
            num_machines=num_machines,
            on_gpus=on_gpus,
            value_bytes=2 if config.model.dtype == "bfloat16" else 4,
            zero_stage=zero_stage(training, num_ranks, on_gpus=on_gpus, in_float32=config.model.dtype != "bfloat16"),
            checkpointing=config.model.gradient_checkpointing is not False,
            micro_batch_tokens=micro_batch_tokens(training.micro_batch_tokens, "cuda" if on_gpus else "cpu"),
            length=length,
            rank_tokens=-(-responses // num_ranks) * length,
            offload=zero.get("offload_optimizer", {}).get("device", "none") != "none",
            bucket=int(zero.get("reduce_bucket_size", DEFAULT_BUCKET)),
            has_reference=config.algorithm.kl_coefficient > 0,
            sequence_parallel=training.sequence_parallel,
        )

    def with_ranks(self, num_ranks: int) -> "Plan":
        """The same on another number of ranks."""
        rank_tokens = -(-self.rank_tokens * self.num_ranks // num_ranks)
        return replace(self, num_ranks=num_ranks, rank_tokens=rank_tokens)


@dataclass(frozen=True, slots=True)
class RankMemory:
    """Bytes where a rank computes, but for `offloaded`, which lie in the host's memory.

    Attributes:
        activations: of the model without its head, at their peak.
        head_or_buckets: the head comes first, the buckets fill up afterwards: the larger of the two.
        reserve: CUDA, NCCL and fragmentation; on a CPU what the allocator keeps.
        reference: weights of the model that a KL term looks at.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    head_or_buckets: int
    reserve: int
    offloaded: int = 0
    reference: int = 0

    @property
    def total(self) -> int:
        """All that has to fit at once."""
        moving = self.activations + self.head_or_buckets + self.reserve
        return self.weights + self.reference + self.gradients + self.optimizer + moving

    @property
    def parts(self) -> dict[str, int]:
        """By the names that people read, in the order of the table."""
        return {
            "weights": self.weights,
            **({"reference": self.reference} if self.reference else {}),
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "activations": self.activations,
            "head": self.head_or_buckets,
            "reserve": self.reserve,
        }


def rank_memory(size: ModelSize, plan: Plan, whole: Rehearsal, body: Rehearsal, heap: Rehearsal) -> RankMemory:
    """What one rank takes at its peak.

    Args:
        size: of the model.
        plan: how it is trained.
        whole, body: the largest micro-batch, with all its response tokens and with one.
        heap: as whole, with checkpointing.

    Example: 7.616e9 parameters in bfloat16 on 4 GPUs take 15.2 + 7.6 + 22.8 GB of weights, gradients and optimizer
    under ZeRO-2, beside 4.0 of buckets; under ZeRO-3 5.8 + 1.1 of gathered weights instead of the 15.2.
    """
    state, gradients = optimizer_bytes(size, plan), gradient_bytes(size, plan)
    head = max(0, whole.peak - body.peak)
    moving = body.peak + head
    if plan.on_gpus:
        reserve = CUDA_BYTES + (NCCL_BYTES if plan.num_ranks > 1 else 0) + int(FRAGMENTATION * moving)
    else:
        reserve = heap_bytes(size, plan, whole, heap)
    return RankMemory(
        weights=weight_bytes(size, plan),
        gradients=0 if plan.offload else gradients,
        optimizer=0 if plan.offload else state,
        activations=body.peak,
        # Without ZeRO all gradients are flattened at once, when the activations are gone.
        head_or_buckets=max(head, bucket_bytes(size, plan) - (0 if plan.zero_stage else body.peak)),
        reserve=reserve,
        offloaded=state + gradients if plan.offload else 0,
        reference=weight_bytes(size, plan) if plan.has_reference else 0,
    )


def heap_bytes(size: ModelSize, plan: Plan, whole: Rehearsal, heap: Rehearsal) -> int:
    """What a process on a CPU takes beside its tensors; the arguments are those of `rank_memory`."""
    share = HEAP if size.adapter is None else HEAP_WITH_ADAPTER
    kept = min(HEAP_OF_KEPT * (whole.small_peak - heap.small_peak), MOST_OF_KEPT)
    # DeepSpeed's flat copy of a rank's gradients stands beside what the allocator has of the buckets.
    flat = size.trained * FLOAT32_BYTES // plan.num_ranks if plan.zero_stage in (1, 2) else 0
    return int(PROCESS_BYTES + share * heap.small_peak + kept) + flat


def weight_bytes(size: ModelSize, plan: Plan) -> int:
    """Weights of the forward pass; under ZeRO-3 a rank's share, and what is gathered at once."""
    whole = size.parameters * plan.value_bytes + size.buffer_bytes
    if plan.zero_stage < 3 or plan.num_ranks == 1:
        return whole
    gathered = (min(size.parameters, MAX_LIVE) + size.largest) * plan.value_bytes
    return min(whole, whole // plan.num_ranks + gathered)


def gradient_bytes(size: ModelSize, plan: Plan) -> int:
    """Gradients that add up over micro-batches, in float32 from ZeRO-1 on; from ZeRO-2 on a rank's share of them."""
    if plan.zero_stage >= 2:
        return size.trained * FLOAT32_BYTES // plan.num_ranks
    accumulated = FLOAT32_BYTES if plan.zero_stage == 1 and plan.value_bytes < FLOAT32_BYTES else 0
    return size.trained * (plan.value_bytes + accumulated)


def optimizer_bytes(size: ModelSize, plan: Plan) -> int:
    """Master weights, where the forward pass has no float32 of its own or ZeRO has copied it, and Adam's moments."""
    has_master = plan.zero_stage > 0 or plan.value_bytes < FLOAT32_BYTES
    per_parameter = ADAM_BYTES + (MASTER_BYTES if has_master else 0)
    return size.trained * per_parameter // (plan.num_ranks if plan.zero_stage else 1)


def bucket_bytes(size: ModelSize, plan: Plan) -> int:
    """Gradients on their way: a bucket, its flattened copy where ranks add up, float32 slices of it in bfloat16."""
    if plan.zero_stage == 0:
        return min(plan.bucket, size.trained) * FLOAT32_BYTES
    # The bucket is allocated whole; a CPU has no pages for what is never written.
    elements = plan.bucket if plan.on_gpus else min(plan.bucket, size.trained)
    copies = 1 if plan.num_ranks == 1 else 2
    in_float32 = FLOAT32_BYTES if plan.value_bytes < FLOAT32_BYTES and plan.zero_stage < 3 else 0
    return elements * (copies * plan.value_bytes + in_float32)


def checkpoint_bytes(size: ModelSize, plan: Plan) -> int:
    """A checkpoint of all ranks, on disk and as the snapshot in the host's memory that it is written from.

    The optimizer's state with its master weights, beside which ZeRO stores no others.
    """
    weights = size.trained * plan.value_bytes if plan.zero_stage == 0 else 0
    return weights + optimizer_bytes(size, replace(plan, num_ranks=1))
