"""`dcpo stats`: the statistics of every prompt of a run as tables, and its pass rates over time as a plot."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure
from pyarrow import csv, parquet

from dcpo_async.errors import ConfigError, DcpoError
from dcpo_async.run_folder import RunFolder
from learner.ledger.copy import open_copy
from learner.ledger.reader import LedgerReader

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


@dataclass(frozen=True, slots=True)
class PromptRow:
    """What the ledger knows of one prompt.

    Attributes:
        visits, count, mean, std: of all rewards it has received; std with ddof 1.
        last_reward: mean reward of its last counted visit.
        last_step, last_version: of the oldest weights that sampled that visit.
    """

    prompt_id: str
    problem: str
    answer: str
    visits: int
    count: int
    mean: float
    std: float
    last_reward: float
    last_step: int
    last_version: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """Prompts in order of their first visit, and the mean reward of every counted group in lease order.

    Attributes:
        reward_range: lowest and highest reward; a pass rate is where between them a mean lies, 0 to 1.
    """

    prompts: list[PromptRow]
    group_rewards: list[float]
    reward_range: tuple[float, float] = (0.0, 1.0)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits 2 on bad input."""
    parser = argparse.ArgumentParser(prog="dcpo stats", description="Statistics of every prompt of a run.")
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--out", type=Path, help="folder for tables and plot (default RUN/stats)")
    options = parser.parse_args(argv)
    try:
        with open_copy(RunFolder(options.run).ledger, is_checked=True) as reader:
            statistics = read_statistics(reader)
        print(export(statistics, options.out or RunFolder(options.run).stats))
    except DcpoError as error:
        print(f"dcpo stats: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def read_statistics(reader: LedgerReader) -> Statistics:
    """All prompts that have been counted; raises ConfigError where none has."""
    version_of = {step: version for version, step in sorted(reader.version_steps().items())}
    last_visit, group_rewards = {}, []
    for row in reader.visits("accepted", "too_old", "discarded"):
        scores = reader.read_scores(row.position)
        assert scores is not None, f"position {row.position} was counted without a group"
        group_rewards.append(fmean(scores[0]))
        last_visit[row.prompt_id] = row, group_rewards[-1]
    if not last_visit:
        raise ConfigError(f"{reader.folder}: no group has been counted yet; wait for the first ones")
    prompts = []
    for prompt_id, (row, reward) in last_visit.items():
        stats, text = reader.reward_stats(prompt_id), reader.prompt_text(prompt_id) or ("", "")
        step = row.weights_step
        prompts.append(
            PromptRow(
                prompt_id, *text, stats.visits, stats.count, stats.mean, stats.std(), reward, step, version_of[step]
            )
        )
    starts = reader.starts()
    # Runs of before own rewards knew 0 and 1 alone.
    low, high = starts[-1].settings.get("grading", {}).get("reward_range", (0.0, 1.0)) if starts else (0.0, 1.0)
    return Statistics(prompts, group_rewards, (low, high))


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
    return (
        f"{len(rows)} prompts, {fmean(row.visits for row in rows):.1f} visits each; mean reward "
        f"{fmean(row.mean for row in rows):.3f}; never right {never:.1%}, always right {always:.1%}\n"
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


if __name__ == "__main__":
    main()
