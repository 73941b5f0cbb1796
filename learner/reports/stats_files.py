"""The files of `dcpo stats`: a table of all prompts, twice, and a plot of pass rates."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure
from pyarrow import csv, parquet

from dcpo_async.errors import ConfigError
from learner.reports.prompt_rows import Statistics

MAX_WINDOWS = 40
PASS_RATES = (
    ("none right", 0.0),
    ("up to 1/4", 0.25),
    ("up to 1/2", 0.5),
    ("up to 3/4", 0.75),
    ("up to all but one", 1.0 - 1e-9),
    ("all right", 1.0),
)
"""Bins of a group's mean reward, each up to its bound."""


def export(statistics: Statistics, folder: Path) -> str:
    """Write prompts.csv, prompts.parquet and pass_rates.png; returns what to tell about them."""
    low, high = statistics.reward_range
    try:
        folder.mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist([asdict(row) for row in statistics.prompts])
        csv.write_csv(table, folder / "prompts.csv")
        parquet.write_table(table, folder / "prompts.parquet")
        plot_pass_rates(
            [(reward - low) / (high - low) for reward in statistics.group_rewards], folder / "pass_rates.png"
        )
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error}); name another --out") from error
    rows = statistics.prompts
    never, always = (fmean(row.mean == bound for row in rows) for bound in (low, high))
    judged = Counter(row.judgement for row in rows)
    rests = f"resting: {judged['solved']} solved, {judged['hopeless']} hopeless; " if "" not in judged else ""
    passed_over = f"{statistics.num_rested} visits were passed over\n" if rests or statistics.num_rested else ""
    return (
        f"{len(rows)} prompts, {fmean(row.visits for row in rows):.1f} visits each; mean reward "
        f"{fmean(row.mean for row in rows):.3f}; never right {never:.1%}, always right {always:.1%}\n"
        f"{rests}{passed_over}"
        f"{folder}: prompts.csv, prompts.parquet, pass_rates.png"
    )


def pass_rate_shares(group_rewards: Sequence[float], num_windows: int) -> list[list[float]]:
    """Share of groups in each bin of PASS_RATES, for consecutive windows of about equal size: [windows][bins].

    Example: rewards (0, 1, 1, 1) in two windows give [.5, 0, 0, 0, 0, .5] and [0, 0, 0, 0, 0, 1].
    """
    bounds = [bound for _, bound in PASS_RATES]
    bins = np.minimum(np.searchsorted(bounds, group_rewards), len(bounds) - 1)
    windows = np.array_split(bins, min(num_windows, len(bins)))
    return [(np.bincount(window, minlength=len(bounds)) / len(window)).tolist() for window in windows]


def plot_pass_rates(group_rewards: Sequence[float], path: Path) -> None:
    """Draw how the pass rates of groups are distributed, over the order in which they were leased, as a PNG."""
    shares = np.array(pass_rate_shares(group_rewards, MAX_WINDOWS))
    ends = np.linspace(0, len(group_rewards), len(shares) + 1)[1:]
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    axes.bar(ends, shares[:, 0], width=-ends[0], align="edge", label=PASS_RATES[0][0])
    for place in range(1, len(PASS_RATES)):
        below = shares[:, :place].sum(axis=1)
        axes.bar(ends, shares[:, place], width=-ends[0], align="edge", bottom=below, label=PASS_RATES[place][0])
    axes.set_xlabel("groups, in the order of their leases")
    axes.set_ylabel("share of groups")
    axes.set_ylim(0, 1)
    axes.set_title("pass rates of groups", fontsize=10)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=120)
