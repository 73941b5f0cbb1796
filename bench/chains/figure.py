"""The curves of a comparison on chains, drawn: means over seeds, with Student's 95 % interval as a band."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import rc_context
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
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("responses generated, thousands")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    for name, curves in arms.items():
        for axes, of_runs in zip(panels, zip(*curves, strict=True), strict=True):
            mean = mean_curve(of_runs)
            thousands = [x / 1000 for x in mean.x]
            (line,) = axes.plot(thousands, [100 * point.mean for point in mean.values], label=f"{name} ({len(curves)})")
            if len(of_runs) > 1:
                low, high = ([100 * getattr(point, side) for point in mean.values] for side in ("low", "high"))
                axes.fill_between(thousands, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
    panels[0].legend(frameon=False, fontsize=9, title="arm (seeds)", title_fontsize=9)
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(path, dpi=80)
