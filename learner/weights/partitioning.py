"""The model as training has it in memory from its reading on: on the GPU, or under ZeRO-3 each rank's share of it."""

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import nn

from learner.weights.loading import TakeOver, loaded_model


def read_model(path: str | Path, dtype: torch.dtype, settings: Mapping[str, Any], device: torch.device) -> Any:
    """Load a model parameter by parameter, so that the host holds no more of it than the pages of its files.

    Args:
        path: a Hugging Face model folder.
        dtype: type of the forward pass.
        settings: DeepSpeed's; under ZeRO-3 all ranks call this, and each keeps its share of each parameter.
        device: of this rank. Where ranks train whole models on a CPU, each needs a copy of its own, and gets one.

    Raises ConfigError as `loaded_model` does.
    """
    model = loaded_model(path, dtype, _take_over(dtype, settings, device))
    # DeepSpeed moves no buffers of a model whose parameters are partitioned.
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)
    return model


def _take_over(dtype: torch.dtype, settings: Mapping[str, Any], device: torch.device) -> TakeOver | None:
    is_partitioned = settings["zero_optimization"]["stage"] == 3
    if not is_partitioned and device.type == "cpu":
        return None
    partition = deepspeed.zero.Init(module=nn.Module(), config_dict_or_path=dict(settings)) if is_partitioned else None

    def take_over(parameter: nn.Parameter) -> None:
        if hasattr(parameter, "ds_tensor"):
            return
        kind = dtype if parameter.is_floating_point() else parameter.dtype
        # A copy, even on a CPU: DeepSpeed has rank 0's bits written into it, and a page of a file that is written to
        # stays a rank's own for as long as any tensor of that file is there.
        parameter.data = parameter.data.to(device, kind, copy=partition is not None)
        if partition is not None:
            partition._convert_to_zero_parameters([parameter])
        # Shares come to lie between blocks that are free again, which the allocator would keep: up to twice the model.
        ctypes.CDLL(None).malloc_trim(0)

    return take_over
