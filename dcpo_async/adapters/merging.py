"""The weights of a model with what an adapter adds to them."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from dcpo_async.errors import WeightsError
from dcpo_async.weights.tensor_file import ADAPTER_CONFIG

PREFIX = "base_model.model."
"""What stands before the name of each tensor in an adapter's file."""
_FIRST, _SECOND = ".lora_A.weight", ".lora_B.weight"


def rank_of(folder: Path) -> int:
    """The rank of the adapter in a folder; raises WeightsError where there is none."""
    return int(_settings(folder)[0])


def scale_of(folder: Path) -> float:
    """What the product of its matrices is multiplied by, alpha / rank; raises WeightsError where there is none."""
    rank, alpha = _settings(folder)
    return alpha / rank


def merged(base: Mapping[str, Tensor], adapter: Mapping[str, Tensor], scale: float) -> Iterator[tuple[str, Tensor]]:
    """The weights with what an adapter adds: W + scale · B·A (equation 3 of arXiv 2106.09685), in W's type.

    The sum is computed in float32.

    Args:
        base: by the names of the model's checkpoint; W is [out, in].
        adapter: by peft's names; A is [rank, in], B [out, rank].
        scale: alpha / rank.

    Raises WeightsError where the adapter is of another model, or lacks a matrix.

    Example: W = [[1, 2]], A = [[3, 4]] and B = [[5]] with scale 0.5 give [[8.5, 12]].
    """
    modules = {name.removeprefix(PREFIX).removesuffix(_FIRST).removesuffix(_SECOND) for name in adapter}
    for module in sorted(modules):
        needed = (PREFIX + module + _FIRST, PREFIX + module + _SECOND)
        if f"{module}.weight" not in base or not set(needed) <= adapter.keys():
            raise WeightsError(f"the adapter has other matrices than for the weights of this model: see {module}")
    for name, weight in base.items():
        module = name.removesuffix(".weight")
        if module not in modules:
            yield name, weight
            continue
        first, second = adapter[PREFIX + module + _FIRST], adapter[PREFIX + module + _SECOND]
        yield name, (weight.float() + scale * (second.float() @ first.float())).to(weight.dtype)


def _settings(folder: Path) -> tuple[int, float]:
    try:
        settings = json.loads((folder / ADAPTER_CONFIG).read_text())
        return int(settings["r"]), float(settings["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{folder} has no adapter configuration: {type(error).__name__}: {error}") from None
