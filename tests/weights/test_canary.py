import math

import pytest

from dcpo_async.errors import CanaryError
from dcpo_async.weights.canary import Canary, canary_bound

CANARY = Canary(token_ids=(5, 6, 7), logprobs=(-1.0, -2.0), bound=0.1)


def test_the_difference_is_that_of_the_worst_token() -> None:
    assert CANARY.largest_difference((-1.02, -1.95), 3) == pytest.approx(0.05)


def test_a_difference_above_the_bound_is_refused_with_its_place_and_both_numbers() -> None:
    message = (
        "weights version 3 is not .* token 2 of 3 .* is -2.25, the trainer's -2; they differ by 0.25 nats, at most 0.1"
    )
    with pytest.raises(CanaryError, match=message):
        CANARY.largest_difference((-1.02, -2.25), 3)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_what_is_not_finite_is_refused_wherever_it_stands(number: float, place: int) -> None:
    found = [-1.0, -2.0]
    found[place] = number
    with pytest.raises(CanaryError, match=f"token {place + 1} of 3"):
        CANARY.largest_difference(found, 3)


def test_another_number_of_log_probs_is_refused() -> None:
    with pytest.raises(CanaryError, match="1 log-probs of 2"):
        CANARY.largest_difference((-1.0,), 3)


def test_the_bound_is_the_settings_or_else_that_of_the_type() -> None:
    assert canary_bound(0.25, "float32") == 0.25
    assert (canary_bound(None, "float32"), canary_bound(None, "bfloat16")) == (1e-3, 1.0)
