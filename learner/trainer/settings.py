"""What the settings of a run mean to DeepSpeed, and the learning rate of each step."""

import math
import sys
from typing import Any

import torch

from dcpo_async.config import RunConfig, TrainingSettings, merged
from learner.ranks import zero_stage


def deepspeed_settings(config: RunConfig, num_ranks: int, *, on_gpus: bool) -> dict[str, Any]:
    """DeepSpeed's configuration: what our settings say, under the user's `training.deepspeed`."""
    settings, dtype = config.training, forward_dtype(config)
    stage = zero_stage(settings, num_ranks, on_gpus=on_gpus, in_float32=dtype == torch.float32)
    ours: dict[str, Any] = {
        # Micro-batches are ours: their number differs from step to step.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.gradient_clip,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": sys.maxsize,
    }
    if on_gpus and stage in (1, 2):
        # Gradients are summed after each micro-batch; by itself DeepSpeed overlaps that with ZeRO-3's backward only.
        ours["zero_optimization"]["overlap_comm"] = True
    if dtype == torch.bfloat16:
        ours["bf16"] = {"enabled": True}
        if stage > 0:
            # Hundreds of small micro-batch gradients would drown in bfloat16's 8 bits.
            ours["data_types"] = {"grad_accum_dtype": "fp32"}
    return merged(ours, settings.deepspeed)


def forward_dtype(config: RunConfig) -> torch.dtype:
    """Type of the forward pass and of published weights."""
    automatic = "bfloat16" if torch.cuda.is_available() else "float32"
    name = automatic if config.model.dtype == "auto" else config.model.dtype
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[name]


def learning_rate(step: int, settings: TrainingSettings) -> float:
    """Return the rate of the update that leads from `step` to `step + 1`, which no state of a scheduler is needed for.

    Linear warm-up over `warmup_steps`, then constant, or falling to `final_rate_share` of the peak by a line or half a
    cosine, which it reaches at `schedule_steps`, by default at the last step of the run, and keeps.

    Args:
        step: optimizer steps done before, from 0.
        settings: peak and shape.

    Example: peak 1e-6 with 10 warm-up steps gives 1e-7 at step 0 and 1e-6 at step 9. With a line to a tenth of it at
    step 110, step 60 has 0.55e-6, and all from 110 on 1e-7.
    """
    peak, warmup = settings.learning_rate, settings.warmup_steps
    if step < warmup:
        return peak * ((step + 1) / warmup)
    end = settings.schedule_steps or settings.max_steps
    if settings.schedule == "constant" or end is None:
        return peak
    done = min(1.0, (step - warmup) / (end - warmup))
    left = 1 - done if settings.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return peak * (settings.final_rate_share + (1 - settings.final_rate_share) * left)
