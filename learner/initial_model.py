"""The model that a run begins with: which one it is, and that all its weights are numbers."""

import hashlib
import json
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dcpo_async.errors import ConfigError
from dcpo_async.weights.raw import raw_bytes
from dcpo_async.weights.store import file_digest

_NOT_THE_MODEL = frozenset({"_name_or_path", "transformers_version", "dtype", "torch_dtype"})
"""Of config.json: where a copy came from, who wrote it, and in which type, which the run decides by itself."""


def model_identity(folder: Path) -> str:
    """Digest of weights and configuration, the same for every copy of a model, wherever it lies.

    Every byte of the weights is read once, and is looked at for values that are no numbers while it is there; ranks
    load them next, and find them in memory then. Files other than safetensors cannot be looked into tensor by tensor;
    the first canary of a run would find those out.

    Raises ConfigError where the folder cannot be read, or a weight is NaN or infinite.
    """
    broken: list[str] = []
    try:
        config = json.loads((folder / "config.json").read_text())
        shape = json.dumps({name: config[name] for name in config.keys() - _NOT_THE_MODEL}, sort_keys=True)
        digests = [f"{path.name} {_digest(path, broken)}" for path in _weight_files(folder)]
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {folder} cannot be read: {error}") from error
    except SafetensorError as error:
        raise ConfigError(f"model {folder}: its weights cannot be read: {error}") from error
    if broken:
        rest = ", ..." if len(broken) > 3 else ""
        raise ConfigError(
            f"model {folder}: {len(broken)} tensors hold values that are no finite numbers: "
            f"{', '.join(sorted(broken)[:3])}{rest}; take a sound copy of the model"
        )
    return hashlib.blake2b("\n".join([shape, *digests]).encode(), digest_size=16).hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def _digest(path: Path, broken: list[str]) -> str:
    """The digest of a file's bytes, as `file_digest` has it; names tensors with values that are no finite numbers."""
    if path.suffix != ".safetensors":
        return file_digest(path)
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        state.update(length := file.read(8))
        state.update(file.read(int.from_bytes(length, "little")))
    with safe_open(path, framework="pt") as tensors:
        # Behind the header there are tensors and nothing else, one at the end of another: safe_open refuses others.
        for name in tensors.offset_keys():
            tensor = tensors.get_tensor(name)
            state.update(raw_bytes(tensor).data)
            if not _is_finite(tensor):
                broken.append(name)
    digest: str = state.hexdigest()
    return digest


def _is_finite(tensor: Tensor) -> bool:
    """Both ends of a tensor are finite only where all of it is: a NaN is both its least and its greatest."""
    if not tensor.is_floating_point() or tensor.numel() == 0 or tensor.element_size() == 1:
        return True
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())
