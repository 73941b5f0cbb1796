"""Corrections of what another policy sampled, by hand."""

import pytest
import torch

from dcpo_async.algorithm import masked_weights, truncated_weights

BEHAVIOR = torch.tensor([0.2, 0.2, 0.2, 0.2, 0.1, 0.1], dtype=torch.float64).log()
OLD = torch.tensor([0.6, 0.1, 0.08, 0.2, 0.5, 0.51], dtype=torch.float64).log()


def test_truncated_weights_stop_at_the_cap() -> None:
    assert truncated_weights(OLD, BEHAVIOR).tolist() == pytest.approx([2.0, 0.5, 0.4, 1.0, 2.0, 2.0])


def test_masked_weights_are_zero_outside_of_their_range_and_untouched_within() -> None:
    assert masked_weights(OLD, BEHAVIOR, 0.45, 5.05).tolist() == pytest.approx([3.0, 0.5, 0.0, 1.0, 5.0, 0.0])


def test_the_bounds_of_the_mask_are_inside() -> None:
    same = torch.tensor([-1.0, -2.0])
    assert masked_weights(same, same, 1.0, 1.0).tolist() == [1.0, 1.0]


def test_a_log_ratio_beyond_float_range_stays_finite() -> None:
    old, behavior = torch.tensor([-2.0, -91.0]), torch.tensor([-91.0, -2.0])
    assert truncated_weights(old, behavior, cap=1e9)[0] == pytest.approx(4.85165e8, rel=1e-4)
    assert masked_weights(old, behavior).tolist() == [0.0, 0.0]
