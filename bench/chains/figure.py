"""The curves of a comparison on chains, drawn: means over seeds, with Student's 95 % interval as a band."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dcpo_async.comparison.figures import Curve, mean_curve

Curves = tuple[Curve, Curve]
"""Of a run, over the responses generated at each measurement: the two shares that are drawn."""


def draw(arms: Mapping[str, Sequence[Curves]], path: Path) -> None:
    """Held-out accuracy and unknown facts learned over responses, a line for each arm.

    Args:
        arms: held-out accuracy and facts learned of the runs of each arm, one at least.
        path: of the picture; its suffix is its format.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True)
    for axes, title in zip(panels, ("held-out accuracy, %", "unknown facts learned, %"), strict=True):
        label(axes, title, "responses generated, thousands")
    for name, curves in arms.items():
        for axes, of_runs in zip(panels, zip(*curves, strict=True), strict=True):
            add_mean(axes, name, of_runs, x_unit=1000, unit=0.01)
    save(figure, panels[0], path)


def label(axes: Axes, title: str, x_label: str) -> None:
    """Name a panel and what it is over."""
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(x_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def add_mean(axes: Axes, name: str, curves: Sequence[Curve], *, x_unit: float = 1, unit: float = 1) -> None:
    """A line for the mean of an arm's runs, with its band where there are several."""
    mean = mean_curve(curves)
    x = [place / x_unit for place in mean.x]
    (line,) = axes.plot(x, [point.mean / unit for point in mean.values], label=f"{name} ({len(curves)})")
    if len(curves) > 1:
        low, high = ([getattr(point, side) / unit for point in mean.values] for side in ("low", "high"))
        axes.fill_between(x, low, high, color=line.get_color(), alpha=0.12, linewidth=0)


def save(figure: Figure, with_legend: Axes, path: Path) -> None:
    """Write a figure, its words as text where that can be."""
    with_legend.legend(frameon=False, fontsize=9, title="arm (seeds)", title_fontsize=9)
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(path, dpi=80)
