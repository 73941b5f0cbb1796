"""Whether a run fits a machine, and if not, the smallest change with which it does. Pure."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, NamedTuple

from dcpo_async.config import RunConfig
from learner.sizing.machine import GB, Machine
from learner.sizing.memory import ModelSize, Plan, RankMemory, checkpoint_bytes

PROCESS_BYTES = 450_000_000
"""A rank with all its imports, or another process with torch: resident, before any weight (bench/memory/)."""
GPU_PROCESS_BYTES = 2_500_000_000
"""The same with CUDA's own part of the host's memory."""
TOKEN_BYTES = 12
"""Of a response token in the ledger: its id, its log-prob, and some four characters of text."""
ROW_BYTES, STEP_BYTES = 320, 6_300
"""In SQLite for each response, and in metrics and TensorBoard for each step: measured, docs/experiments.md."""
OTHER_PROCESSES = 2
"""Coordinator and publisher; the weight server has no torch."""
LEAST_TOKENS, LEAST_TOKENS_ON_CPU = 1024, 256
MOST_GPUS = 64
OFFLOAD = """--training.deepspeed '{"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}'"""

Memory = Callable[[Plan], RankMemory]
Change = tuple[str, Plan, RunConfig]
"""In words, and what a run is with it."""


class Setting(NamedTuple):
    """One setting changed: which, in words, and in the plan."""

    name: str
    words: str
    change: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes that a run takes of a machine.

    Attributes:
        rank: of one rank, by parts.
        host: of the machine's memory, of all processes and shared buffers; page cache not counted.
        disk: of the run folder once everything that is kept is there.
        version, checkpoint: of one.
        ledger: of the ledger and metrics, at most: every response of its largest length.
        frozen: of the model below an adapter, which machines with actors have beside the versions; 0 without one.
    """

    rank: RankMemory
    host: int
    disk: int
    version: int
    checkpoint: int
    ledger: int
    frozen: int = 0


@dataclass(frozen=True, slots=True)
class Shortfall:
    """The first number that does not fit."""

    what: str
    needed: int
    there: int


def needs(config: RunConfig, size: ModelSize, plan: Plan, memory: RankMemory) -> Needs:
    """What a run takes, all of its parts together."""
    whole = size.parameters * plan.value_bytes + size.buffer_bytes
    version, frozen = (whole, 0) if size.adapter is None else (size.adapter * plan.value_bytes, whole)
    checkpoint = checkpoint_bytes(size, plan)
    here = plan.num_ranks // plan.num_machines
    ranks = here * (GPU_PROCESS_BYTES if plan.on_gpus else PROCESS_BYTES + memory.total)
    # Two shared buffers, in which ranks hand weights over to the publisher, and this machine's part of a checkpoint.
    host = ranks + OTHER_PROCESSES * PROCESS_BYTES + 2 * version + here * memory.offloaded
    host += checkpoint // plan.num_machines
    # One more of each while it is written, and the export; with an adapter its model, in the run folder and the store.
    disk = (config.checkpoint.keep_last + 1) * checkpoint + (config.lag.keep_versions + 1) * version
    disk += whole + 2 * frozen
    if config.evaluation.every_steps is not None and config.evaluation.keep_best:
        # The best version, and the one that takes its place.
        disk += 2 * whole
    return Needs(memory, host, disk, version, checkpoint, ledger_bytes(config), frozen)


def ledger_bytes(config: RunConfig) -> int:
    """The most that the ledger and metrics of a run come to; without a last step, the arrays alone, which come and go.

    Arrays stay until every checkpoint that is kept contains them, rows and metrics for good.
    """
    checkpoint, steps = config.checkpoint, config.training.max_steps
    responses = config.training.groups_per_step * config.sampling.group_size
    behind = steps if checkpoint.keep_every_steps else checkpoint.keep_last * (checkpoint.interval_steps or 0)
    arrays = TOKEN_BYTES * config.sampling.max_response_tokens * responses
    arrays *= (behind or 0) + config.admission_window // config.training.groups_per_step
    return arrays + (steps or 0) * (responses * ROW_BYTES + STEP_BYTES)


def tight(need: Needs, machine: Machine) -> str | None:
    """A word on a disk that holds all but the ledger of long responses; None where it holds that too."""
    if need.disk + need.ledger <= machine.disk:
        return None
    return (
        f"the disk of the run folder has {gb(machine.disk)} GB, checkpoints and versions take {gb(need.disk)} GB, and "
        f"the ledger up to {gb(need.ledger)} GB more; make room, or a smaller checkpoint.interval_steps"
    )


def shortfall(need: Needs, plan: Plan, machine: Machine) -> Shortfall | None:
    """What a machine does not have; None where all fits. GPUs of unknown size are not judged."""
    where = f"each of {plan.num_ranks} GPUs" if plan.num_ranks > 1 else "the GPU"
    for what, needed, there in (
        (where, need.rank.total, machine.gpu if plan.on_gpus else None),
        ("the memory of this machine", need.host, machine.host),
        ("the disk of the run folder", need.disk, machine.disk),
    ):
        if there is not None and needed > there:
            return Shortfall(what, needed, there)
    return None


def told(config: RunConfig, size: ModelSize, plan: Plan, machine: Machine, memory: Memory) -> str | None:
    """The one line about a run that does not fit: the number, and the smallest change; None where it fits."""
    need = needs(config, size, plan, memory(plan))
    short = shortfall(need, plan, machine)
    if short is None:
        return None
    parts = ""
    if short.needed == need.rank.total or (not plan.on_gpus and short.needed == need.host):
        parts = " (" + ", ".join(f"{name} {gb(value)}" for name, value in need.rank.parts.items()) + ")"
    return (
        f"{size.parameters / 1e9:.3g} B parameters need {gb(short.needed)} GB of {short.what}{parts}, and "
        f"{gb(short.there)} GB are there; {smallest_change(config, size, plan, machine, memory)}"
    )


def smallest_change(config: RunConfig, size: ModelSize, plan: Plan, machine: Machine, memory: Memory) -> str:
    """Words of the change that touches least and fits: settings that cost little first, the optimizer off the GPUs
    next, more GPUs last."""

    def first(changes: Iterable[Change]) -> str | None:
        for words, changed, changed_config in changes:
            need = needs(changed_config, size, changed, memory(changed))
            if shortfall(need, changed, machine) is None:
                return words + (f" ({gb(need.rank.total)} GB each)" if plan.on_gpus else "")
        return None

    settings = list(_settings(plan, size.heads))
    found = first(_combined(config, plan, settings))
    if found is None and plan.on_gpus:
        off_gpus = replace(plan, offload=True)
        offloaded = first(
            (f"{words} {OFFLOAD}".lstrip(), replace(off_gpus, **change), config)
            for words, change in ((" ".join(w), c) for w, c in _sets(settings))
        )
        found = " or ".join(filter(None, (first(_on_more_gpus(config, size, plan)), offloaded))) or None
    return f"{found} would fit" if found else "no setting would fit: take a smaller model or another machine"


def _combined(config: RunConfig, plan: Plan, settings: Sequence[Setting]) -> Iterator[Change]:
    """One setting changed, then two, then three."""
    if config.checkpoint.keep_last > 1:
        checkpoint = config.checkpoint.model_copy(update={"keep_last": 1})
        yield "--checkpoint.keep_last 1", plan, config.model_copy(update={"checkpoint": checkpoint})
    for words, change in _sets(settings):
        yield " ".join(words), replace(plan, **change), config
    if not plan.on_gpus and plan.num_ranks > 1 and plan.sequence_parallel == 1:
        yield "--workers 1", plan.with_ranks(1), config


def _on_more_gpus(config: RunConfig, size: ModelSize, plan: Plan) -> Iterator[Change]:
    for num_ranks in range(plan.num_ranks + 1, MOST_GPUS + 1):
        if num_ranks % plan.sequence_parallel:
            continue
        more = plan.with_ranks(num_ranks)
        for words, change in _sets(list(_settings(more, size.heads)), most=1):
            yield " ".join((f"{num_ranks} GPUs", *words)), replace(more, **change), config


def _sets(settings: Sequence[Setting], most: int = 3) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Sets of settings that differ in name, the smallest first; the empty one before all."""
    for number in range(most + 1):
        for chosen in combinations(settings, number):
            if len({setting.name for setting in chosen}) == number:
                change = {field: value for setting in chosen for field, value in setting.change.items()}
                yield tuple(setting.words for setting in chosen), change


def _settings(plan: Plan, num_heads: int) -> Iterator[Setting]:
    """What one setting can do."""
    tokens, least = plan.micro_batch_tokens // 2, LEAST_TOKENS if plan.on_gpus else LEAST_TOKENS_ON_CPU
    while tokens >= max(least, -(-plan.length // plan.sequence_parallel)):
        yield Setting("tokens", f"--training.micro_batch_tokens {tokens}", {"micro_batch_tokens": tokens})
        tokens //= 2
    if not plan.checkpointing:
        yield Setting("checkpointing", "--model.gradient_checkpointing true", {"checkpointing": True})
    if plan.on_gpus and plan.num_ranks > 1:
        for stage in range(plan.zero_stage + 1, 4):
            yield Setting("zero", f"--training.zero_stage {stage}", {"zero_stage": stage})
    # Of use where a response is longer than a micro-batch has to be, and goes alone.
    is_long = plan.length > plan.micro_batch_tokens * plan.sequence_parallel
    for number in range(plan.sequence_parallel + 1, plan.num_ranks + 1) if is_long else ():
        if plan.num_ranks % number == 0 and num_heads % number == 0:
            words = f"--training.sequence_parallel {number}"
            yield Setting("sequence", words, {"sequence_parallel": number})


def gb(num_bytes: int) -> str:
    """Gigabytes, as people read them."""
    return f"{num_bytes / GB:.1f}" if num_bytes >= 10**9 else f"{num_bytes / GB:.2f}"
