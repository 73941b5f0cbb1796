"""Columns of arrays of different lengths."""

import numpy as np
import pytest

from dcpo_async.columns import joined, parted


def test_what_was_joined_is_parted_again_empty_arrays_included() -> None:
    arrays = [np.array([1, 2], np.int32), np.empty(0, np.int32), np.array([3], np.int32)]
    column = joined(arrays, "<i4")
    assert column.tolist() == [1, 2, 3]
    assert [part.tolist() for part in parted(column, [2, 0, 1])] == [[1, 2], [], [3]]


def test_no_arrays_are_an_empty_column_of_their_type() -> None:
    assert joined([], "<f4").dtype == np.float32
    assert parted(joined([], "<f4"), []) == []


def test_parts_are_views() -> None:
    column = np.arange(4, dtype=np.int32)
    assert all(np.shares_memory(part, column) for part in parted(column, [1, 3]))


def test_lengths_must_add_up() -> None:
    with pytest.raises(AssertionError, match="3 elements for lengths"):
        parted(np.zeros(3), [1, 1])
