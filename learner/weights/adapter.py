"""A LoRA adapter in the model that trains: its layers, and its names in peft's format. The only importer of peft."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dcpo_async.adapters import PREFIX
from dcpo_async.config import AdapterSettings
from dcpo_async.durable import write_json
from dcpo_async.errors import ConfigError
from dcpo_async.weights.tensor_file import ADAPTER_CONFIG
from learner.weights.checkpoint_format import checkpoint_views
from learner.weights.layout import TensorView, whole_shape

_NAME = "default"


def add_adapter(model: Any, settings: AdapterSettings, seed: int) -> dict[str, TensorView]:
    """Give a model's layers their matrices, which are trained from now on, and nothing else is.

    The product of the matrices is 0 at first: the model computes what it did. The first matrix is drawn from the seed,
    the same on every rank.

    Args:
        model: a Hugging Face model, before anything wraps it.
        settings: with a rank.

    Returns:
        Where the tensors of the adapter's file lie in the model, by peft's names.

    Raises:
        ConfigError: a target is not in the model, is no linear layer or its head, or its weight stands in the
            checkpoint in another form, so that the adapter could not be added to it there.
    """
    views = checkpoint_views(model)
    # Only runs with an adapter need it: the machine of `make gpu-check` has none.
    from peft import inject_adapter_in_model

    for target in settings.target_modules:
        _require_target(model, views, target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(_peft_config(settings, ""), model, adapter_name=_NAME)
    trained = {name: parameter for name, parameter in model.named_parameters() if f".{_NAME}." in name}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in trained.values():
        parameter.data = parameter.data.to(model.dtype)
        parameter.requires_grad_(True)
    return {
        PREFIX + name.replace(f".{_NAME}.", "."): TensorView(name, tuple(tensor.shape), tensor.stride(), 0)
        for name, tensor in trained.items()
    }


def write_adapter_skeleton(folder: Path, settings: AdapterSettings, base: str) -> None:
    """Write an adapter's configuration as peft and vLLM read it; `base` is the model that it is for."""
    config = _peft_config(settings, base)
    # peft keeps a set, whose order differs from process to process.
    plain = {name: sorted(value) if isinstance(value, set) else value for name, value in config.to_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / ADAPTER_CONFIG, plain | {"inference_mode": True})


def _peft_config(settings: AdapterSettings, base: str) -> Any:
    from peft import LoraConfig

    assert settings.rank is not None
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules=list(settings.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
    )


def _require_target(model: Any, views: Mapping[str, TensorView], target: str) -> None:
    modules: dict[str, nn.Module] = dict(model.named_modules())
    found = {name: module for name, module in modules.items() if f".{name}".endswith(f".{target}")}
    kind, head = model.config.model_type, model.get_output_embeddings()
    if not found:
        linear = {
            name.rpartition(".")[2]
            for name, each in modules.items()
            if isinstance(each, nn.Linear) and each is not head
        }
        raise ConfigError(
            f"adapter.target_modules: a {kind} model has no {target}; its linear layers are "
            f"{', '.join(sorted(linear)) or 'none'}"
        )
    for name, module in found.items():
        if module is head or not isinstance(module, nn.Linear):
            what = "the model's head" if module is head else f"a {type(module).__name__}"
            raise ConfigError(
                f"adapter.target_modules: {target} of a {kind} model is {what}; only linear layers below the head can "
                "have an adapter"
            )
        source, shape = f"{name}.weight", whole_shape(module.weight)
        if views.get(source) != TensorView(source, shape, (shape[1], 1), 0):
            raise ConfigError(
                f"adapter.target_modules: the checkpoint of a {kind} model has {source} in another form, so that "
                "neither engines nor an export could add the adapter to it"
            )
