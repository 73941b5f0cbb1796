"""Loads the model to train, and refuses one that could not be published in the format of its own checkpoint."""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import AutoModelForCausalLM

from dcpo_async.errors import ConfigError
from dcpo_async.weights.tensor_file import shapes_in
from learner.weights.checkpoint_format import all_views, first_line, first_names
from learner.weights.layout import Shape

log = logging.getLogger(__name__)

TakeOver = Callable[[nn.Parameter], None]
"""Puts the weights of a parameter where they will be, and does nothing where they are there."""
_NO_READING_AHEAD = "HF_DEACTIVATE_ASYNC_LOAD"
"""transformers' own switch: else its threads read and convert tensors faster than they are taken over."""


def loaded_model(path: str | Path, dtype: torch.dtype, take_over: TakeOver | None = None) -> Any:
    """Load a causal language model of which every weight comes from its folder, and which can be published again.

    What a checkpoint has beyond the model is refused, since published versions would lack it, but for tensors that
    transformers knows to be no part of the model: tables that are computed, such as rotary_emb.inv_freq, and layers
    that predict further tokens, such as model.layers.61 of DeepSeek-V3. The model neither uses nor trains those; vLLM
    skips them unless it drafts with them. They are left out of all versions and exports, and the log says so.

    Args:
        path: a Hugging Face model folder.
        dtype: type of the forward pass.
        take_over: called with each parameter before the next one is read, but for small ones, embeddings and heads,
            which are taken over at the end.

    Raises ConfigError where the checkpoint lacks weights, which transformers would make up at random, where it has
    others than would be published, and where `checkpoint_views` refuses the model.
    """
    try:
        with _taken_over_as_read(take_over):
            model, report = AutoModelForCausalLM.from_pretrained(
                path, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise ConfigError(f"model {path} cannot be loaded: {first_line(error)}") from error
    _require_none(path, "lacks weights, which would be made up at random", report["missing_keys"])
    of_other_shape = (f"{name} {tuple(found)}, not {tuple(own)}" for name, found, own in report["mismatched_keys"])
    _require_none(path, "has weights in shapes that are not those of its config.json", of_other_shape)
    require_checkpoint(path, model)
    _require_tied_as_told(path, model)
    if getattr(model.config, "attn_logit_softcapping", None) is not None:
        # The default, torch's fused attention, leaves out the capping of Gemma 2 without a word.
        model.set_attn_implementation("eager")
    if take_over is not None:
        for parameter in model.parameters():
            take_over(parameter)
    return model


@contextmanager
def _taken_over_as_read(take_over: TakeOver | None) -> Iterator[None]:
    """Have the parameters of a model that transformers loads in this context taken over, one by one.

    It reads tensor after tensor, in an order that is the same on all ranks, and sets each in its module.
    """
    if take_over is None:
        yield
        return
    shapes_of_embeddings = set[torch.Size]()

    def on_registration(module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        if parameter is None:
            return
        if isinstance(module, nn.Embedding):
            # Of all of them when the model is made, before anything is read.
            shapes_of_embeddings.add(parameter.shape)
        is_read = getattr(parameter, "_is_hf_initialized", False) and not parameter.is_meta
        # What may be tied waits: transformers compares it in the end, and ties what is equal.
        if is_read and parameter.dim() > 1 and parameter.shape not in shapes_of_embeddings:
            take_over(parameter)

    before = os.environ.get(_NO_READING_AHEAD)
    os.environ[_NO_READING_AHEAD] = "1"
    hook = register_module_parameter_registration_hook(on_registration)
    try:
        yield
    finally:
        hook.remove()
        os.environ.pop(_NO_READING_AHEAD)
        if before is not None:
            os.environ[_NO_READING_AHEAD] = before


def require_checkpoint(path: str | Path, model: Any) -> None:
    """Raise ConfigError unless what would be published has the names and shapes of the folder's safetensors files.

    Of several names of a tied tensor a checkpoint may have any. Folders of pytorch_model*.bin, which cannot be looked
    into without loading them, are not compared.
    """
    found = checkpoint_shapes(Path(path))
    if not found:
        return
    firsts, views = first_names(model), all_views(model)
    untrained = _untrained(model, found.keys() - views.keys())
    if untrained:
        log.warning("%s: %d tensors are no part of the model, as %s", path, len(untrained), min(untrained))
    shapes = {name: view.shape for name, view in views.items()}
    surplus = {name for name, shape in found.items() if shapes.get(name) != shape} - untrained
    same = {name: view._replace(source=firsts[view.source]) for name, view in views.items()}
    held = {same[name] for name in same.keys() & found.keys()}
    lacking = {name for name in same if same[name] not in held}
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
            shapes |= shapes_in(folder / name)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ConfigError(f"model {folder}: its weights cannot be read: {first_line(error)}") from None
    return shapes


def _require_tied_as_told(path: str | Path, model: Any) -> None:
    """Raise ConfigError where embedding and head differ though config.json ties them: vLLM would drop the head."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if model.config.get_text_config().tie_word_embeddings and head.weight is not embedding.weight:
        raise ConfigError(
            f"model {path} ({_kind(model)}) has a head of its own; set tie_word_embeddings to false in its config.json"
        )


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
