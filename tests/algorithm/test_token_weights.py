"""only_token_mean_weights: one weight for each response."""

import pytest

from dcpo_async.algorithm import only_token_mean_weights
from dcpo_async.errors import AlgorithmError


def test_worked_examples_of_the_docstring() -> None:
    assert only_token_mean_weights([2, 5], group_size=2, num_groups=1) == [0.25, 0.1]
    assert only_token_mean_weights([2, 5], group_size=2, num_groups=1, scale="sum") == [0.5, 0.2]


def test_weighted_tokens_are_the_mean_over_groups_of_the_mean_over_responses() -> None:
    token_losses = [[[1.0, 2.0], [3.0, 4.0, 5.0]], [[6.0], [7.0, 8.0, 9.0, 10.0]]]
    by_hand = ((1.5 + 4.0) / 2 + (6.0 + 8.5) / 2) / 2
    responses = [response for group in token_losses for response in group]
    weights = only_token_mean_weights([len(response) for response in responses], group_size=2, num_groups=2)
    weighted = sum(weight * sum(response) for weight, response in zip(weights, responses, strict=True))
    assert weighted == pytest.approx(by_hand)


def test_a_share_of_the_batch_has_the_weights_it_has_in_the_whole() -> None:
    whole = only_token_mean_weights([3, 7, 1, 9], group_size=2, num_groups=2)
    assert only_token_mean_weights([7, 1], group_size=2, num_groups=2) == whole[1:3]


def test_an_empty_response_weighs_nothing_and_takes_no_weight_from_the_others() -> None:
    assert only_token_mean_weights([0, 4], group_size=2, num_groups=1) == [0.0, 0.125]


@pytest.mark.parametrize(
    ("lengths", "group_size", "num_groups", "scale"),
    [([-1], 1, 1, "mean"), ([1], 0, 1, "mean"), ([1], 1, 0, "sum"), ([1], 1, 1, "median")],
)
def test_impossible_arguments_are_refused(lengths, group_size: int, num_groups: int, scale) -> None:
    with pytest.raises(AlgorithmError, match=r"at least|fewer than 0|'mean' or 'sum'"):
        only_token_mean_weights(lengths, group_size, num_groups, scale)
