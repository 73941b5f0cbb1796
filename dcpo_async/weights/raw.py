"""The raw bits of tensors: the digests by which they are compared, and how they are laid out to be compressed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from dcpo_async.errors import WeightsError

LONG_GAP = (1 << 16) - 1
"""A gap that is so long, or longer, is this and the rest."""


def dtype_name(tensor: Tensor) -> str:
    """The element type as torch spells it, such as "bfloat16"."""
    return str(tensor.dtype).removeprefix("torch.")


def raw_bytes(tensor: Tensor) -> NDArray[np.uint8]:
    """The elements in row-major order as bytes; shares memory with a contiguous CPU tensor.

    Raises WeightsError for sparse layouts, which have no such bytes.
    """
    if tensor.layout is not torch.strided:
        raise WeightsError(f"found a tensor of layout {tensor.layout}; only dense tensors can be published")
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    raw: NDArray[np.uint8] = plain.reshape(-1).view(torch.uint8).numpy()
    return raw


def tensor_from_raw(raw: NDArray[np.uint8], dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """The tensor whose raw bytes these are; it shares their memory."""
    return torch.from_numpy(raw).view(dtype).reshape(tuple(shape))


def bytes_digest(raw: NDArray[np.uint8]) -> str:
    """xxh3_128 as 32 hexadecimal digits; of nothing it is 99aa06d3014798d86001c324468d497f."""
    digest: str = xxhash.xxh3_128(raw.data).hexdigest()
    return digest


def byte_planes(words: NDArray[Any]) -> list[NDArray[np.uint8]]:
    """The first bytes of all words, then the second ones, and so on: alike bytes stand together."""
    by_byte = words.view(np.uint8).reshape(-1, words.itemsize)
    return [np.ascontiguousarray(by_byte[:, place]) for place in range(words.itemsize)]


def joined_planes(planes: Sequence[NDArray[np.uint8]], dtype: str) -> NDArray[Any]:
    """The words that `byte_planes` was given."""
    joined: NDArray[Any] = np.ascontiguousarray(np.stack(planes, axis=1)).reshape(-1).view(dtype)
    return joined


def gaps_of(indices: NDArray[np.int64]) -> NDArray[np.uint16]:
    """How many words lie between neighbouring indices: [0, 1, 5] gives [0, 0, 3], and [70000] gives [65535, 4465]."""
    gaps = np.diff(indices, prepend=-1) - 1
    num_long = gaps // LONG_GAP
    numbers = np.full(len(gaps) + int(num_long.sum()), LONG_GAP, dtype="<u2")
    numbers[np.cumsum(num_long + 1) - 1] = gaps % LONG_GAP
    return numbers


def indices_of(gaps: NDArray[np.uint16]) -> NDArray[np.int64]:
    """The indices that `gaps_of` was given; they rise whatever the gaps are."""
    is_last = gaps != LONG_GAP
    ends: NDArray[np.int64] = np.cumsum(gaps, dtype=np.int64)[is_last]
    return ends + np.arange(len(ends))
