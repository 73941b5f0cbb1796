"""The cost of a response that comes near the length limit."""

import pytest

from dcpo_async.algorithm import overlong_penalty
from dcpo_async.errors import AlgorithmError


@pytest.mark.parametrize(("length", "penalty"), [(0, 0.0), (80, 0.0), (81, 0.05), (90, 0.5), (100, 1.0)])
def test_the_penalty_rises_over_the_buffer(length: int, penalty: float) -> None:
    assert overlong_penalty(length, max_tokens=100, buffer_tokens=20) == pytest.approx(penalty)


def test_without_a_buffer_nothing_is_lost() -> None:
    assert overlong_penalty(100, max_tokens=100, buffer_tokens=0) == 0.0


@pytest.mark.parametrize(("length", "buffer"), [(101, 20), (-1, 20), (50, 101), (50, -1)])
def test_what_cannot_be_is_refused(length: int, buffer: int) -> None:
    with pytest.raises(AlgorithmError, match="0 to 100"):
        overlong_penalty(length, max_tokens=100, buffer_tokens=buffer)
