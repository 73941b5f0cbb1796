"""What the settings of a run mean to DeepSpeed."""

import sys
from typing import Any

import torch

from dcpo_async.config import RunConfig, merged


def deepspeed_settings(config: RunConfig, *, on_gpus: bool) -> dict[str, Any]:
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
    if on_gpus and settings.zero_stage in (1, 2):
        # Gradients are summed after each micro-batch; by itself DeepSpeed overlaps that with ZeRO-3's backward only.
        ours["zero_optimization"]["overlap_comm"] = True
    if forward_dtype(config) == torch.bfloat16:
        ours["bf16"] = {"enabled": True}
        if settings.zero_stage > 0:
            # Hundreds of small micro-batch gradients would drown in bfloat16's 8 bits.
            ours["data_types"] = {"grad_accum_dtype": "fp32"}
    return merged(ours, settings.deepspeed)


def forward_dtype(config: RunConfig) -> torch.dtype:
    """Type of the forward pass and of published weights."""
    automatic = "bfloat16" if torch.cuda.is_available() else "float32"
    name = automatic if config.model.dtype == "auto" else config.model.dtype
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[name]
