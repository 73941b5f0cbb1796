"""Draws the rewards of runs: `python -m bench.gym.figure docs/images/sums.svg DCPO=RUN DCPO=RUN GRPO=RUN …`.

A line is the mean over the runs of one name, of running means over five steps; a band is Student's 95 % interval.
"""

import sys
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure

from bench.chains.figure import add_mean, label, save
from dcpo_async.comparison.figures import Curve, Measured
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
    label(axes, "reward of the responses of a step, mean over 5 steps", "optimizer steps, 32 responses each")
    axes.set_ylim(0, 1)
    for name, curves in arms.items():
        add_mean(axes, name, curves)
    save(figure, axes, Path(path))


if __name__ == "__main__":
    main()
