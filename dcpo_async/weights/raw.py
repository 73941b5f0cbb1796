"""The raw bits of tensors, and the digests by which they are compared."""

from collections.abc import Sequence

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from dcpo_async.errors import WeightsError


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
