"""From the trainer's model to whole weights, gathered layer by layer, and to a folder that they can be loaded from."""

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcpo_async.durable import replace_folder
from dcpo_async.weights.tensor_file import write_tensors

Gather = Callable[[Sequence[nn.Parameter]], AbstractContextManager[object]]
"""Makes partitioned parameters whole for the length of a context; all ranks enter in the same order."""

GENERATION_CONFIG = "generation_config.json"
_LAYER = re.compile(r"(.*?\.\d+)\.")


def gather_weights(model: nn.Module, dtype: torch.dtype, gather: Gather, keep: bool) -> dict[str, Tensor]:
    """Return the model's state on the CPU; every rank has to call it, and only those that keep get it.

    A layer at a time is whole on each rank, never the model. A tensor with several names stands under the first.
    Persistent buffers keep their type: they are not rounded in the forward pass.

    Args:
        model: a Hugging Face model, partitioned or not.
        dtype: published type, that of the forward pass.
        gather: context in which the parameters it is given are whole.
        keep: whether this rank wants the result; the others return an empty dict.
    """
    weights: dict[str, Tensor] = {}
    for _, layer in groupby(model.named_parameters(), key=lambda named: layer_of(named[0])):
        named = list(layer)
        with gather([parameter for _, parameter in named]):
            if keep:
                # Copied out: what the context shows is taken back when it ends, or trained on.
                weights |= {name: parameter.detach().to("cpu", dtype, copy=True) for name, parameter in named}
    if keep:
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        buffers = {name: tensor for name, tensor in model.state_dict().items() if name not in parameters}
        weights |= {name: buffer.to("cpu", copy=True) for name, buffer in buffers.items()}
    return weights


def layer_of(name: str) -> str:
    """Return the part of a parameter's name that its layer shares: model.layers.3 of model.layers.3.mlp.up.weight.

    A parameter outside numbered layers is a layer of its own: embeddings and head are the largest tensors.
    """
    match = _LAYER.match(name)
    return match[1] if match else name


def tied_names(model: nn.Module) -> dict[str, str]:
    """Return each further name of a shared parameter with the name under which gather_weights has it."""
    first_names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        name: first_names[id(parameter)]
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if first_names[id(parameter)] != name
    }


def write_skeleton(folder: Path, model: Any, tokenizer: Any, source: Path) -> None:
    """Write all of a Hugging Face model folder but the weights; `source` is the folder that the model came from."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    # Copied: saving it anew refuses settings that transformers finds at odds, and shipped models have them.
    if (source / GENERATION_CONFIG).exists():
        shutil.copyfile(source / GENERATION_CONFIG, folder / GENERATION_CONFIG)
    tokenizer.save_pretrained(folder)


def export_weights(folder: Path, skeleton: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a Hugging Face model folder; one that is there already is replaced once the new one stands whole."""
    writing = folder.with_name(f".writing-{folder.name}")
    shutil.rmtree(writing, ignore_errors=True)
    shutil.copytree(skeleton, writing)
    write_tensors(writing / "model.safetensors", weights)
    replace_folder(writing, folder)
