"""What an engine asks of a Hugging Face folder before it loads it."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError

from dcpo_async.errors import WeightsError
from dcpo_async.weights.tensor_file import shapes_in

Shapes = Mapping[str, tuple[int, ...]]


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


def stop_token_ids(folder: Path) -> list[int]:
    """End tokens that generation_config.json names; vLLM knows the one of the model by itself, but not these."""
    path = folder / "generation_config.json"
    found = json.loads(path.read_text()).get("eos_token_id") if path.exists() else None
    return found if isinstance(found, list) else [] if found is None else [found]


def has_latent_attention(folder: Path) -> bool:
    """Whether the model keeps a latent instead of keys and values, as DeepSeek-V3 does."""
    return "kv_lora_rank" in json.loads((folder / "config.json").read_text())
