"""Writes safetensors files, and digests each byte on its way: once, for the file and for its tensors alike."""

import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
import xxhash
from safetensors import safe_open
from torch import Tensor

from dcpo_async.errors import WeightsError
from dcpo_async.weights.raw import dtype_name, raw_bytes, tensor_from_raw
from dcpo_async.weights.stretches import StretchDigests

WEIGHTS_NAME = "model.safetensors"
ADAPTER_NAME, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""Of a LoRA adapter, as peft and vLLM read it."""
_ALIGNMENT = 8
_PIECE_BYTES = 1 << 20
"""What is hashed for its tensor is still in the cache when it is hashed for the file, and written."""
_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}

_TORCH_NAMES = {name: torch_name for torch_name, name in _DTYPES.items()}


class Digests(NamedTuple):
    """The digests of a file's stretches, and the xxh3_128 of each tensor's bytes by its name."""

    file: tuple[str, ...]
    tensors: dict[str, str]


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape by name of the tensors in a safetensors file, from its header; raises OSError, SafetensorError."""
    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> Digests:
    """Write a safetensors file, as `transformers` and vLLM read them.

    Args:
        path: does not exist.
        tensors: dense ones on the CPU; larger elements come first, so that each begins at a multiple of its size.

    Raises WeightsError for a type that safetensors does not know.
    """
    ordered = sorted(tensors.items(), key=lambda named: (-named[1].element_size(), named[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, tensor in ordered:
        if (dtype := _DTYPES.get(dtype_name(tensor))) is None:
            raise WeightsError(f"tensor {name!r} is {dtype_name(tensor)}; a safetensors file holds {sorted(_DTYPES)}")
        if name in header:
            raise WeightsError(f"tensor {name!r} has the name of a safetensors file's own words")
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, start + tensor.nbytes]}
        start += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    whole = StretchDigests()
    of_tensors: dict[str, str] = {}
    with path.open("xb") as file:
        for piece in (len(text).to_bytes(8, "little"), text):
            whole.update(piece)
            file.write(piece)
        for name, tensor in ordered:
            of_tensors[name] = _write_tensor(file, whole, raw_bytes(tensor).data)
    return Digests(whole.digests(), of_tensors)


def map_tensors(path: Path, *, for_change: bool = False) -> dict[str, Tensor]:
    """The tensors of a safetensors file that `write_tensors` wrote, in its pages: nothing is read until it is used.

    Args:
        for_change: what is written to the tensors is written to the file; else it is seen by nobody.

    Raises:
        WeightsError: the file is shorter or longer than its header says, or the header is malformed.
    """
    with path.open("r+b" if for_change else "rb") as file:
        access = mmap.ACCESS_WRITE if for_change else mmap.ACCESS_COPY
        try:
            # Writable in both cases: torch warns of arrays that are not.
            raw = np.frombuffer(mmap.mmap(file.fileno(), 0, access=access), dtype=np.uint8)
            start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
            header = json.loads(raw[8:start].tobytes())
            del header["__metadata__"]
            ends = [start + entry["data_offsets"][1] for entry in header.values()]
            if max(ends, default=start) != len(raw):
                raise WeightsError(f"{path} has {len(raw)} bytes, its header says {max(ends, default=start)}")
            return {name: _mapped(raw[start:], **entry) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise WeightsError(f"{path} has no header of a weights file: {error}") from error


def _mapped(raw: Any, dtype: str, shape: list[int], data_offsets: list[int]) -> Tensor:
    torch_dtype = getattr(torch, _TORCH_NAMES[dtype])
    return tensor_from_raw(raw[data_offsets[0] : data_offsets[1]], torch_dtype, shape)


def _write_tensor(file: BinaryIO, whole: StretchDigests, raw: memoryview) -> str:
    """Write a tensor's bytes and add them to the digests of the file; returns their own."""
    digest = xxhash.xxh3_128()
    for start in range(0, len(raw), _PIECE_BYTES):
        piece = raw[start : start + _PIECE_BYTES]
        digest.update(piece)
        whole.update(piece)
        file.write(piece)
    found: str = digest.hexdigest()
    return found
