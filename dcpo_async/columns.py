"""Arrays of different lengths as one column, and back: how the tokens of many responses travel and are stored."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def joined(arrays: Sequence[NDArray[Any]], dtype: str) -> NDArray[Any]:
    """One-dimensional arrays one after another, as this type; no arrays give an empty one."""
    return np.concatenate([np.asarray(array, dtype=dtype) for array in arrays]) if arrays else np.empty(0, dtype=dtype)


def parted(column: NDArray[Any], lengths: Sequence[int]) -> list[NDArray[Any]]:
    """Views of the stretches that `joined` put together; the lengths must add up to the column's."""
    ends = np.cumsum(lengths, dtype=np.int64)
    assert len(column) == (ends[-1] if len(ends) else 0), f"{len(column)} elements for lengths {list(lengths)}"
    return np.split(column, ends[:-1]) if len(ends) else []
