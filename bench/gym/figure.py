"""Draws the rewards of runs: `python -m bench.gym.figure docs/images/sums.svg DCPO=RUN DCPO=RUN GRPO=RUN …`.

A line is the mean over the runs of one name, of running means over five steps; a band is Student's 95 % interval.
"""

import sys
from collections import defaultdict
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from dcpo_async.comparison.figures import Curve, Measured, mean_curve
from dcpo_async.metrics.curves import running_mean
from dcpo_async.metrics.jsonl import read_metrics

WINDOW = 5


def main() -> None:
    """Read the runs' metrics, and write the picture."""
    path, *words = sys.argv[1:]
    arms = defaultdict[str, list[Curve]](list)
    for name, _, folder in (word.partition("=") for word in words):
        steps = read_metrics(Path(folder))
        means = running_mean([step["reward"] for step in steps], WINDOW)
        arms[name].append(Curve(tuple(step["step"] for step in steps), tuple(map(Measured, means))))
    figure = Figure(figsize=(7.5, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.set_title("reward of the responses of a step, mean over 5 steps", loc="left", fontsize=10)
    axes.set_xlabel("optimizer steps, 32 responses each")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_ylim(0, 1)
    for name, curves in arms.items():
        mean = mean_curve(curves)
        (line,) = axes.plot(mean.x, [point.mean for point in mean.values], label=f"{name} ({len(curves)})")
        if len(curves) > 1:
            low, high = ([getattr(point, side) for point in mean.values] for side in ("low", "high"))
            axes.fill_between(mean.x, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
    axes.legend(frameon=False, fontsize=9, title="arm (seeds)", title_fontsize=9)
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
