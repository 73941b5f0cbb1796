"""What an engine asks of a Hugging Face folder before it loads it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

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


@dataclass(frozen=True, slots=True)
class Kind:
    """What all versions that an engine can hold have in common.

    Attributes:
        shapes: of the tensors that come with each version: the model's, or its adapter's.
        frozen: run and version of the weights that the adapter belongs to; None where there is no adapter.
        lora_arguments: what vLLM is told of the adapter at its start; empty without one.
    """

    shapes: Shapes
    frozen: tuple[str, int] | None = None
    lora_arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> Self:
        """The kind of the version in a folder; raises WeightsError."""
        shapes = tensor_shapes(folder)
        manifest = read_manifest(folder) if (folder / MANIFEST_NAME).exists() else None
        if manifest is None or manifest.base_version is None:
            return cls(shapes)
        rank = rank_of(folder)
        room = next(room for room in _RANKS if room >= rank)
        arguments = {"enable_lora": True, "max_loras": 1, "max_cpu_loras": 1, "max_lora_rank": room}
        return cls(shapes, (manifest.run_id, manifest.base_version), arguments)

    def check(self, folder: Path) -> None:
        """Refuse a folder of another kind than an engine was started with; raises WeightsError."""
        found = Kind.of(folder)
        if found.frozen != self.frozen or found.lora_arguments != self.lora_arguments:
            raise WeightsError(
                f"{folder} has an adapter to {found.frozen}, the engine was started with one to {self.frozen}; start "
                "it anew"
            )
        names = found.shapes.keys() | self.shapes.keys()
        differing = sorted(name for name in names if found.shapes.get(name) != self.shapes.get(name))
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
