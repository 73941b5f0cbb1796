"""The model's own checkpoint format: which tensor of a checkpoint lies where in the tensors of the loaded model.

In memory transformers has tensors under other names and in other pieces than a checkpoint, such as all experts of a
layer in one tensor. Engines and users expect the checkpoint's, so that is what is published and exported.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion

from dcpo_async.errors import ConfigError

log = logging.getLogger(__name__)

Shape = tuple[int, ...]


class TensorView(NamedTuple):
    """How a tensor of the checkpoint lies within one tensor of the model, as torch.as_strided has it.

    Attributes:
        source: name of the model's tensor in its state_dict; of a tied one the first.
        shape: of the checkpoint's tensor.
        stride, offset: in elements of the source, which is contiguous.
    """

    source: str
    shape: Shape
    stride: Shape
    offset: int


def loaded_model(path: str | Path, dtype: torch.dtype) -> Any:
    """Load a causal language model of which every weight comes from its folder, and which can be published again.

    What a checkpoint has beyond the model is refused, since published versions would lack it, but for tensors that
    transformers knows to be no part of the model: tables that are computed, such as rotary_emb.inv_freq, and layers
    that predict further tokens, such as model.layers.61 of DeepSeek-V3. The model neither uses nor trains those; vLLM
    skips them unless it drafts with them. They are left out of all versions and exports, and the log says so.

    Args:
        path: a Hugging Face model folder.
        dtype: type of the forward pass.

    Raises ConfigError where the checkpoint lacks weights, which transformers would make up at random, where it has
    others than would be published, and where `checkpoint_views` refuses the model.
    """
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {path} cannot be loaded: {_first_line(error)}") from error
    _require_none(path, "lacks weights, which would be made up at random", report["missing_keys"])
    of_other_shape = (f"{name} {tuple(found)}, not {tuple(own)}" for name, found, own in report["mismatched_keys"])
    _require_none(path, "has weights in shapes that are not those of its config.json", of_other_shape)
    require_checkpoint(path, model)
    return model


def checkpoint_views(model: Any) -> dict[str, TensorView]:
    """The tensors of the model's checkpoint by the names they have there; persistent buffers are among them.

    A tied tensor stands once, under its first name. What transformers does to save a model is done here to tensors
    without data, whose storage, strides and offset tell where in the model each result would have come from.

    Args:
        model: a Hugging Face model, before anything wraps or partitions it.

    Raises ConfigError where a tensor of the checkpoint is no strided view of one tensor of the model, and where parts
    of the model would not be in the checkpoint.

    Example: of a Mixtral with experts of 4 × 6, `model.layers.0.block_sparse_moe.experts.1.w3.weight` is
    TensorView("model.layers.0.mlp.experts.gate_up_proj", (4, 6), (6, 1), 72).
    """
    firsts = _first_names(model)
    return {name: view for name, view in _all_views(model).items() if firsts[view.source] == view.source}


def tied_checkpoint_names(model: Any) -> dict[str, str]:
    """Each further name of a tied tensor in the model's checkpoint, with the one that `checkpoint_views` has."""
    firsts, views = _first_names(model), _all_views(model)
    names = {view: name for name, view in views.items()}
    same = {name: names[view._replace(source=firsts[view.source])] for name, view in views.items()}
    return {name: first for name, first in same.items() if name != first}


def in_checkpoint_format(state: Mapping[str, Tensor], views: Mapping[str, TensorView]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, as views that share the memory of the model's own.

    Args:
        state: whole tensors by their names in the model's state_dict, contiguous; there may be more than views need.
        views: of `checkpoint_views`.
    """
    return {
        name: state[view.source].as_strided(view.shape, view.stride, state[view.source].storage_offset() + view.offset)
        for name, view in views.items()
    }


def require_checkpoint(path: str | Path, model: Any) -> None:
    """Raise ConfigError unless what would be published has the names and shapes of the folder's safetensors files.

    Of several names of a tied tensor a checkpoint may have any. Folders of pytorch_model*.bin, which cannot be looked
    into without loading them, are not compared.
    """
    found = checkpoint_shapes(Path(path))
    if not found:
        return
    firsts, views = _first_names(model), _all_views(model)
    untrained = _untrained(model, found.keys() - views.keys())
    if untrained:
        log.warning("%s: %d tensors are no part of the model, as %s", path, len(untrained), min(untrained))
    shapes = {name: view.shape for name, view in views.items()}
    surplus = {name for name, shape in found.items() if shapes.get(name) != shape} - untrained
    held = {firsts[views[name].source] for name in views.keys() & found.keys()}
    lacking = {name for name, view in views.items() if name not in found and firsts[view.source] not in held}
    _require_none(path, f"({_kind(model)}) has tensors that would not be published as they are", surplus)
    _require_none(path, f"({_kind(model)}) has not what would be published", lacking)


def checkpoint_shapes(folder: Path) -> dict[str, Shape]:
    """Shape by name of the tensors in the safetensors files that transformers would load; empty without such files.

    Only their headers are read. Raises ConfigError where that fails.
    """
    index = folder / "model.safetensors.index.json"
    shapes: dict[str, Shape] = {}
    try:
        files = {"model.safetensors"}
        if not (folder / "model.safetensors").exists():
            files = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else set()
        for name in sorted(files):
            with safe_open(folder / name, framework="pt") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ConfigError(f"model {folder}: its weights cannot be read: {_first_line(error)}") from None
    return shapes


class _NoCopies(TorchDispatchMode):
    """Copies are views of what they are copied from, so that a result tells where its values come from."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.clone.default:
            return torch.ops.aten.alias.default(args[0])
        if func._schema.is_mutable:
            raise TypeError(f"{func} changes a tensor in place")
        return func(*args, **(kwargs or {}))


def _all_views(model: Any) -> dict[str, TensorView]:
    """Views by their names in the checkpoint; each name of a tied tensor is a source of its own."""
    if getattr(model.config, "quantization_config", None) is not None:
        raise ConfigError(f"the model ({_kind(model)}) is quantized; only one in bfloat16 or float32 can be trained")
    ignored = model._keys_to_ignore_on_save or ()
    state = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        for name, tensor in model.state_dict().items()
        if name not in ignored
    }
    sources = {tensor.untyped_storage()._cdata: name for name, tensor in state.items()}
    try:
        with _NoCopies():  # type: ignore[no-untyped-call]
            reverted = revert_weight_conversion(model, dict(state))
    except Exception as error:
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise ConfigError(f"the checkpoint format of {_kind(model)} cannot be written: {reason}") from error
    views: dict[str, TensorView] = {}
    num_seen: Counter[str] = Counter()
    for name, tensor in reverted.items():
        source = sources.get(tensor.untyped_storage()._cdata)
        if source is None or tensor.dtype != state[source].dtype:
            raise ConfigError(f"tensor {name} of a {_kind(model)} checkpoint is no part of one tensor of the model")
        views[name] = TensorView(source, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))
        num_seen[source] += tensor.numel()
    for source, tensor in state.items():
        if num_seen[source] != tensor.numel():
            raise ConfigError(
                f"tensor {source} of {_kind(model)} would be in its checkpoint in part, or more than once"
            )
    return views


def _first_names(model: Any) -> dict[str, str]:
    """Each name of the model's state_dict with the first name of the same tensor."""
    firsts: dict[int, str] = {}
    return {name: firsts.setdefault(id(tensor), name) for name, tensor in model.state_dict(keep_vars=True).items()}


def _untrained(model: Any, names: set[str]) -> set[str]:
    """Which tensors of a checkpoint transformers knows to be no part of the model."""
    report = SimpleNamespace(missing_keys=set[str](), unexpected_keys=set(names))
    model._adjust_missing_and_unexpected_keys(report)
    return names - set(report.unexpected_keys)


def _require_none(path: str | Path, complaint: str, found: Iterable[str]) -> None:
    """Raise ConfigError with the first of what should not be there."""
    names = sorted(found)
    if names:
        rest = ", ..." if len(names) > 3 else ""
        raise ConfigError(f"model {path} {complaint}: {len(names)} of them: {', '.join(names[:3])}{rest}")


def _kind(model: Any) -> str:
    return str(model.config.model_type)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
