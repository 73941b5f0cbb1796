"""What an engine asks of a Hugging Face folder before it loads it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from dcpo_async.adapters import rank_of
from dcpo_async.errors import WeightsError
from dcpo_async.weights.manifest import MANIFEST_NAME, read_manifest
from dcpo_async.weights.tensor_file import shapes_in

Shapes = Mapping[str, tuple[int, ...]]
LORA_NAME, LORA_ID = "policy", 1
"""What vLLM calls the adapter of an engine, whatever version it has: it is exchanged under all that are in flight."""
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Which vLLM has room for; a lower rank takes the next of them."""


def tensor_shapes(folder: Path) -> Shapes:
    """Shape by name of the tensors in a folder's safetensors files, from their headers; raises WeightsError."""
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        for path in folder.glob("*.safetensors"):
            shapes |= shapes_in(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"the weights in {folder} cannot be read: {error}") from None
    if not shapes:
        raise WeightsError(f"{folder} holds no safetensors file")
    return shapes


def check_shapes(folder: Path, expected: Shapes) -> None:
    """Refuse a folder whose tensors are not those that an engine was started with; raises WeightsError."""
    shapes = tensor_shapes(folder)
    differing = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
    if differing:
        raise WeightsError(
            f"{folder}: {len(differing)} tensors differ in name or shape from those that the engine was started "
            f"with, the first is {differing[0]}; publish the same model, or start the engine anew"
        )


def frozen_weights(folder: Path) -> tuple[str, int] | None:
    """Which frozen weights an adapter's version belongs to, by run and version; None of a whole model."""
    if not (folder / MANIFEST_NAME).exists():
        return None
    manifest = read_manifest(folder)
    return None if manifest.base_version is None else (manifest.run_id, manifest.base_version)


def check_frozen(folder: Path, expected: tuple[str, int] | None) -> None:
    """Refuse a folder whose frozen weights are not those that an engine was started with; raises WeightsError."""
    if (found := frozen_weights(folder)) != expected:
        raise WeightsError(f"{folder} belongs to the model {found}, the engine has {expected}; start the engine anew")


def lora_arguments(folder: Path) -> dict[str, Any]:
    """What vLLM is told at its start of the adapter in a folder; raises WeightsError."""
    rank = rank_of(folder)
    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_cpu_loras": 1,
        "max_lora_rank": next(room for room in _RANKS if room >= rank),
    }


def stop_token_ids(folder: Path) -> list[int]:
    """End tokens that generation_config.json names; vLLM knows the one of the model by itself, but not these."""
    path = folder / "generation_config.json"
    found = json.loads(path.read_text()).get("eos_token_id") if path.exists() else None
    return found if isinstance(found, list) else [] if found is None else [found]


def has_latent_attention(folder: Path) -> bool:
    """Whether the model keeps a latent instead of keys and values, as DeepSeek-V3 does."""
    return "kv_lora_rank" in json.loads((folder / "config.json").read_text())
