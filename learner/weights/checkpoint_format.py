"""The model's own checkpoint format: which tensor of a checkpoint lies where in the tensors of the loaded model.

In memory transformers has tensors under other names and in other pieces than a checkpoint, such as all experts of a
layer in one tensor. Engines and users expect the checkpoint's, so that is what is published and exported.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.core_model_loading import revert_weight_conversion

from dcpo_async.errors import ConfigError
from learner.weights.layout import TensorView, whole_shape


def checkpoint_views(model: Any) -> dict[str, TensorView]:
    """The tensors of the model's checkpoint by the names they have there; persistent buffers are among them.

    A tied tensor stands once, under its first name. What transformers does to save a model is done here to tensors
    without data, whose storage, strides and offset tell where in the model each result would have come from.

    Args:
        model: a Hugging Face model, before anything wraps it.

    Raises ConfigError where a tensor of the checkpoint is no strided view of one tensor of the model, and where parts
    of the model would not be in the checkpoint.

    Example: of a Mixtral with experts of 4 × 6, `model.layers.0.block_sparse_moe.experts.1.w3.weight` is
    TensorView("model.layers.0.mlp.experts.gate_up_proj", (4, 6), (6, 1), 72).
    """
    firsts = first_names(model)
    return {name: view for name, view in all_views(model).items() if firsts[view.source] == view.source}


def tied_checkpoint_names(model: Any) -> dict[str, str]:
    """Each further name of a tied tensor in the model's checkpoint, with the one that `checkpoint_views` has."""
    firsts, views = first_names(model), all_views(model)
    names = {view: name for name, view in views.items()}
    same = {name: names[view._replace(source=firsts[view.source])] for name, view in views.items()}
    return {name: first for name, first in same.items() if name != first}


class _NoCopies(TorchDispatchMode):
    """Copies are views of what they are copied from, so that a result tells where its values come from.

    Attributes:
        storage: which the last operation took a tensor from.
    """

    storage: int | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if isinstance(args[0], Tensor):
            self.storage = args[0].untyped_storage()._cdata
        if func is torch.ops.aten.clone.default:
            return torch.ops.aten.alias.default(args[0])
        if func._schema.is_mutable:
            raise TypeError(f"{func} changes a tensor in place")
        return func(*args, **(kwargs or {}))


def all_views(model: Any) -> dict[str, TensorView]:
    """Views by their names in the checkpoint; each name of a tied tensor is a source of its own."""
    kind = model.config.model_type
    if getattr(model.config, "quantization_config", None) is not None:
        raise ConfigError(f"the model ({kind}) is quantized; only one in bfloat16 or float32 can be trained")
    ignored = model._keys_to_ignore_on_save or ()
    state = {
        name: torch.empty(whole_shape(tensor), dtype=tensor.dtype, device="meta")
        for name, tensor in model.state_dict(keep_vars=True).items()
        if name not in ignored
    }
    sources = {tensor.untyped_storage()._cdata: name for name, tensor in state.items()}
    operations = _NoCopies()  # type: ignore[no-untyped-call]
    try:
        with operations:
            reverted = revert_weight_conversion(model, dict(state))
    except Exception as error:
        name = sources.get(operations.storage, "unknown")
        raise ConfigError(
            f"tensor {name} of a {kind} model has no plain place in its checkpoint: {first_line(error)}"
        ) from error
    views: dict[str, TensorView] = {}
    num_seen: Counter[str] = Counter()
    for name, tensor in reverted.items():
        source = sources.get(tensor.untyped_storage()._cdata)
        if source is None or tensor.dtype != state[source].dtype:
            raise ConfigError(f"tensor {name} of a {kind} checkpoint does not lie in one tensor of the model")
        views[name] = TensorView(source, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))
        num_seen[source] += tensor.numel()
    for source, tensor in state.items():
        if num_seen[source] != tensor.numel():
            raise ConfigError(f"tensor {source} of a {kind} model would be in its checkpoint in part, or twice")
    return views


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def first_names(model: Any) -> dict[str, str]:
    """Each name of the model's state_dict with the first name of the same tensor."""
    firsts: dict[int, str] = {}
    return {name: firsts.setdefault(id(tensor), name) for name, tensor in model.state_dict(keep_vars=True).items()}
