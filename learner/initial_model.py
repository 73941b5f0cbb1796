"""The model that a run begins with: which one it is, and that all its weights are numbers."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dcpo_async.errors import ConfigError
from dcpo_async.weights.store import file_digest

_NOT_THE_MODEL = frozenset({"_name_or_path", "transformers_version", "dtype", "torch_dtype"})
"""Of config.json: where a copy came from, who wrote it, and in which type, which the run decides by itself."""


def model_identity(folder: Path) -> str:
    """Digest of weights and configuration, the same for every copy of a model, wherever it lies.

    Every byte of the weights is read once: ranks load them next, and find them in memory then.

    Raises ConfigError where the folder cannot be read.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        shape = json.dumps({name: config[name] for name in config.keys() - _NOT_THE_MODEL}, sort_keys=True)
        digests = [f"{path.name} {file_digest(path)}" for path in _weight_files(folder)]
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {folder} cannot be read: {error}") from error
    return hashlib.blake2b("\n".join([shape, *digests]).encode(), digest_size=16).hexdigest()


def require_numbers(folder: Path) -> None:
    """Raise ConfigError where a weight in the folder's safetensors files is NaN or infinite.

    Other files cannot be looked into tensor by tensor; the first canary of a run would find them out.
    """
    try:
        broken = sorted(name for name, tensor in _tensors(folder) if not _is_finite(tensor))
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"model {folder}: its weights cannot be read: {error}") from error
    if broken:
        rest = ", ..." if len(broken) > 3 else ""
        raise ConfigError(
            f"model {folder}: {len(broken)} tensors hold values that are no finite numbers: "
            f"{', '.join(broken[:3])}{rest}; take a sound copy of the model"
        )


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)


def _is_finite(tensor: Tensor) -> bool:
    """Both ends of a tensor are finite only where all of it is: a NaN is both its least and its greatest."""
    if not tensor.is_floating_point() or tensor.numel() == 0 or tensor.element_size() == 1:
        return True
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())
