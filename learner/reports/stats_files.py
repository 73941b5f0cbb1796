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
from learner.reports.pass_rates import PASS_RATES, pass_rate_shares
from learner.reports.prompt_rows import Statistics

MAX_WINDOWS = 40


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
    rests = f"judged: {judged['solved']} solved, {judged['hopeless']} hopeless; " if "" not in judged else ""
    passed_over = f"{statistics.num_rested} visits were passed over\n" if rests or statistics.num_rested else ""
    return (
        f"{len(rows)} prompts, {fmean(row.visits for row in rows):.1f} visits each; mean reward "
        f"{fmean(row.mean for row in rows):.3f}; never right {never:.1%}, always right {always:.1%}\n"
        f"{rests}{passed_over}"
        f"{folder}: prompts.csv, prompts.parquet, pass_rates.png"
    )


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
