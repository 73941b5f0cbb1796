"""How the pass rates of groups are distributed, over the order of their leases."""

from collections.abc import Sequence

import numpy as np

PASS_RATES = (
    ("none right", 0.0),
    ("up to 1/4", 0.25),
    ("up to 1/2", 0.5),
    ("up to 3/4", 0.75),
    ("up to all but one", 1.0 - 1e-9),
    ("all right", 1.0),
)
"""Bins of a group's mean reward, each up to its bound."""


def pass_rate_shares(group_rewards: Sequence[float], num_windows: int) -> list[list[float]]:
    """Share of groups in each bin of PASS_RATES, for consecutive windows of about equal size: [windows][bins].

    Example: rewards (0, 1, 1, 1) in two windows give [.5, 0, 0, 0, 0, .5] and [0, 0, 0, 0, 0, 1].
    """
    bounds = [bound for _, bound in PASS_RATES]
    bins = np.minimum(np.searchsorted(bounds, group_rewards), len(bounds) - 1)
    windows = np.array_split(bins, min(num_windows, len(bins)))
    return [(np.bincount(window, minlength=len(bounds)) / len(window)).tolist() for window in windows]
