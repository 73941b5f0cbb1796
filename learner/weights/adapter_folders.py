"""What a run with an adapter leaves on disk beside its versions: the model that it is for, and both at the end."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dcpo_async.adapters import merged, scale_of
from dcpo_async.config import RunConfig
from dcpo_async.durable import replace_folder
from dcpo_async.errors import WeightsError
from dcpo_async.run_folder import AdapterFolders, RunFolder
from dcpo_async.weights.raw import dtype_name
from dcpo_async.weights.tensor_file import ADAPTER_NAME, WEIGHTS_NAME, map_tensors, write_tensors
from learner.weights.adapter import add_adapter, write_adapter_skeleton
from learner.weights.checkpoint_format import checkpoint_views
from learner.weights.layout import TensorView, in_checkpoint_format
from learner.weights.loading import loaded_model
from learner.weights.model_folder import write_skeleton


def adapter_views(model: Any, tokenizer: Any, config: RunConfig, *, writes: bool) -> dict[str, TensorView]:
    """Add the adapter of a run to a model, and tell where its tensors lie in it.

    Args:
        writes: the model and the adapter's configuration into the run's folder, before anything is added.
    """
    if writes:
        folder = AdapterFolders(config.folder)
        # Read anew, since of the model that trains this rank may have a part, or have it on a GPU.
        write_base(folder.base, loaded_model(config.model.path, model.dtype), tokenizer, Path(config.model.path))
        write_adapter_skeleton(folder.skeleton, config.adapter, config.model.path)
    return add_adapter(model, config.adapter, config.seed)


def write_base(folder: Path, model: Any, tokenizer: Any, source: Path) -> None:
    """Write the model that an adapter is trained for, unless it stands there in this type.

    Args:
        folder: of the base; a run keeps its model, so that what stands there differs in type at most.
        model: as it was loaded, whole.
        source: the folder that it came from.
    """
    tensors = in_checkpoint_format(dict(model.state_dict()), checkpoint_views(model))
    if _types_in(folder) == {name: dtype_name(tensor) for name, tensor in tensors.items()}:
        return
    writing = folder.with_name(f".writing-{folder.name}")
    shutil.rmtree(writing, ignore_errors=True)
    write_skeleton(writing, model, tokenizer, source)
    write_tensors(writing / WEIGHTS_NAME, tensors)
    replace_folder(writing, folder)


def export_adapter(run: RunFolder, adapter: Mapping[str, Tensor]) -> None:
    """Write the model with the adapter added to its weights, and the adapter in a folder `adapter` within.

    One that is there already is replaced once the new one stands whole.

    Args:
        run: with base and the configuration of the adapter.
        adapter: by peft's names.
    """
    writing = run.export.with_name(f".writing-{run.export.name}")
    shutil.rmtree(writing, ignore_errors=True)
    shutil.copytree(run.skeleton, writing)
    of_adapter = AdapterFolders(run.path)
    base = map_tensors(of_adapter.base / WEIGHTS_NAME)
    write_tensors(writing / WEIGHTS_NAME, dict(merged(base, adapter, scale_of(of_adapter.skeleton))))
    shutil.copytree(of_adapter.skeleton, writing / "adapter")
    write_tensors(writing / "adapter" / ADAPTER_NAME, adapter)
    replace_folder(writing, run.export)


def _types_in(folder: Path) -> dict[str, str]:
    """The tensors in a base folder by their types; none where there is no whole one."""
    try:
        return {name: dtype_name(tensor) for name, tensor in map_tensors(folder / WEIGHTS_NAME).items()}
    except (OSError, WeightsError):
        return {}
