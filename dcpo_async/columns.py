"""Arrays of different lengths as one column, and back: how the tokens of many responses travel and are stored."""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


def joined(arrays: Sequence[NDArray[Any]], dtype: str) -> NDArray[Any]:
    """One-dimensional arrays one after another, as this type; no arrays give an empty one."""
    return np.concatenate([np.asarray(array, dtype=dtype) for array in arrays]) if arrays else np.empty(0, dtype=dtype)


def parted(column: NDArray[Any], lengths: Sequence[int]) -> list[NDArray[Any]]:
    """Views of the stretches that `joined` put together; the lengths must add up to the column's."""
    # np.split takes four times as long, and a group of 16 responses is parted half a dozen times on its way.
    ends = list(accumulate(map(int, lengths)))
    assert len(column) == (ends[-1] if ends else 0), f"{len(column)} elements for lengths {list(lengths)}"
    return [column[start:end] for start, end in pairwise([0, *ends])]


def aligned(first: str, second: str) -> Callable[[T], T]:
    """A check that two attributes have an entry for each other's: it returns what it is given, or raises ValueError."""

    def check(record: T) -> T:
        lengths = len(getattr(record, first)), len(getattr(record, second))
        if lengths[0] != lengths[1]:
            raise ValueError(f"{lengths[1]} {second} for {lengths[0]} {first}")
        return record

    return check
