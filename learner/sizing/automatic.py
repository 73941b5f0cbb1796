"""What `auto` means for a run on its machine: decided once at each start, and then told to all of its processes."""

import logging
from dataclasses import replace
from typing import Protocol

from dcpo_async.config import RunConfig
from dcpo_async.errors import CheckpointError, ConfigError
from dcpo_async.run_folder import RunFolder
from learner.checkpoints.folder import complete_steps, described_checkpoint
from learner.ranks import zero_stage
from learner.sizing.fit import needs
from learner.sizing.machine import Machine
from learner.sizing.memory import ModelSize, Plan, RankMemory

log = logging.getLogger("learner")

MOST_OF_MACHINE = 0.5
"""Of a GPU, or of the memory that is free at the start, that activations are kept in; the rest is for the error of the
estimate, which was never measured on a GPU, and on a CPU for actors on the same machine."""


class Sized(Protocol):
    """What has to be known of a model; see `learner.sizing.model.SizedModel`."""

    @property
    def size(self) -> ModelSize:
        """Its elements."""
        ...

    def memory(self, plan: Plan) -> RankMemory:
        """What a rank takes under a plan."""
        ...


def decided(
    config: RunConfig, model: Sized, machine: Machine | None, num_ranks: int, num_machines: int = 1, *, on_gpus: bool
) -> tuple[RunConfig, Plan]:
    """The settings without `auto` in ZeRO stage and gradient checkpointing, and the plan of them.

    Args:
        config: whose type is decided.
        model: that is trained.
        machine: what there is on it; None where nothing is to be estimated.

    Raises:
        ConfigError: options of ZeRO are set for a run whose checkpoints are without it.
    """
    training, settings = config.training, config.model
    if training.zero_stage == "auto":
        stage = zero_stage(training, num_ranks, on_gpus=on_gpus, in_float32=settings.dtype == "float32")
        stage = _as_before(stage, config)
        log.info("training.zero_stage: %d", stage)
        config = config.model_copy(update={"training": training.model_copy(update={"zero_stage": stage})})
    plan = Plan.of(config, num_ranks, num_machines, on_gpus=on_gpus)
    if settings.gradient_checkpointing == "auto":
        # Of other machines nothing is known here.
        is_roomy = machine is not None and num_machines == 1 and _has_room(config, model, plan, machine)
        log.info("model.gradient_checkpointing: %s", "false" if is_roomy else "true")
        plan = replace(plan, checkpointing=not is_roomy)
        settings = settings.model_copy(update={"gradient_checkpointing": not is_roomy})
    return config.model_copy(update={"model": settings}), plan


def _has_room(config: RunConfig, model: Sized, plan: Plan, machine: Machine) -> bool:
    """Whether activations can be kept; in a GPU of unknown size they cannot."""
    kept = replace(plan, checkpointing=False)
    needed = needs(config, model.size, kept, model.memory(kept))
    takes, there = (needed.rank.total, machine.gpu or 0) if plan.on_gpus else (needed.host, machine.host)
    return takes <= MOST_OF_MACHINE * there


def _as_before(stage: int, config: RunConfig) -> int:
    """The stage with which ranks load the newest checkpoint of a run: those without ZeRO, and with it, differ."""
    checkpoints = RunFolder(config.folder).checkpoints
    for step in sorted(complete_steps(checkpoints), reverse=True):
        try:
            before = described_checkpoint(checkpoints, step).layout.zero_stage
        except CheckpointError:
            # The ranks say so, if they are to load it.
            continue
        if before == 0 and "zero_optimization" in config.training.deepspeed:
            raise ConfigError(
                f"training.deepspeed.zero_optimization: the checkpoint of step {step} in {checkpoints} is without "
                "ZeRO, and so goes the run on; leave these options out, or choose another --folder"
            )
        if (before == 0) != (stage == 0):
            log.info("the checkpoint of step %d is with ZeRO %d, which a run keeps to", step, before)
            return before
        break
    return stage
