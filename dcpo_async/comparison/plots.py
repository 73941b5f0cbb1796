"""The figures of a comparison, each as a PNG: a line for each configuration, with its interval as a band."""

import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, PercentFormatter

from dcpo_async.comparison.figures import Curve, Measured, mean_curve
from dcpo_async.comparison.runs import Cost
from dcpo_async.comparison.summary import Accuracy, Comparison, Row, accuracy_curves, mean_accuracy
from dcpo_async.metrics.curves import running_mean

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Told apart with every kind of colour vision (Okabe & Ito 2008); their yellow is too pale for lines."""
DASHES = ("-", "--", "-.", ":")
"""So that lines which lie upon each other show, and a print in grey can be read."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SMOOTHED_SHARE = 20
"""A running mean goes over the steps of the longest run, divided by this."""
MINUTES_FROM, HOURS_FROM = 600.0, 7200.0
SHARE_MARGIN = 0.02
LEAST_RUNS = 3
"""Of two, Student's interval is 13 times their standard error: a band that fills the panel, and says nothing."""
LEGEND_CHARACTERS = 140
"""In one row of a legend, about."""
TOKENS = "generated tokens"
TCR = "TCR, logarithmic above 0.01 %"
LINEAR_TCR = 1e-4
"""Algorithms clip shares of tokens that lie orders of magnitude apart, and none at all in some steps."""
BAND = "Thin lines are single runs; the band is Student's 95 % interval over 3 runs of a configuration or more"
ACCURACY = (
    "Held-out accuracy",
    f"At each measured step, over what the runs had spent by then, on average. {BAND}; a configuration of one run "
    "shows the evaluation's own interval, over problems.",
)
"""Title and caption."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of training and how it is shown."""

    key: str
    title: str
    y_label: str
    is_share: bool = False


TRAINING = {
    "Response utilization ratio (RUR)": (
        Metric("rur", "all visits", "RUR", is_share=True),
        Metric("rur_later", "second and later visits", "RUR", is_share=True),
    ),
    "Token clipping ratio (TCR) and entropy": (
        Metric("tcr", "token clipping ratio", TCR, is_share=True),
        Metric("entropy", "entropy", "nats per token"),
    ),
    "Response length and lag": (
        Metric("response_length", "response length", "tokens of a response"),
        Metric("lag_mean", "lag", "optimizer steps"),
    ),
}
"""Figures by their titles."""


@dataclass(frozen=True, slots=True)
class Lines:
    """A configuration in a panel: the curve of each run that has a value, and the one that stands for them all."""

    runs: list[Curve]
    mean: Curve


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes.

    Attributes:
        is_share: the values are shown in percent.
        lines: of each configuration.
        is_measured: each point is a measurement, and marked; else it is a running mean.
    """

    title: str
    x_label: str
    y_label: str
    is_share: bool
    lines: list[Lines]
    is_measured: bool = False


@dataclass(frozen=True, slots=True)
class Plot:
    """A PNG, and what stands with it."""

    title: str
    caption: str
    alternative: str
    png: bytes


def plots(comparison: Comparison) -> Iterator[Plot]:
    """Every figure, in the order of the report; that of held-out accuracy only where there is any."""
    rows = comparison.rows
    window = max(1, round(max(max(row.steps) for row in rows) / SMOOTHED_SHARE))
    if comparison.accuracy is not None:
        panels = [_accuracy_panel(rows, comparison.accuracy, cost) for cost in ("steps", "tokens", "seconds")]
        yield _drawn(*ACCURACY, panels, rows)
    for title, metrics in TRAINING.items():
        caption = f"Running mean over {window} steps. {BAND}, cut where it leaves the axes."
        yield _drawn(title, caption, [_metric_panel(rows, metric, window) for metric in metrics], rows)


def color(place: int) -> str:
    """The colour of the configuration at a place, as #RRGGBB."""
    return COLORS[place % len(COLORS)]


def _accuracy_panel(rows: Sequence[Row], accuracy: Accuracy, cost: Cost) -> Panel:
    lines = []
    for row in rows:
        runs = [curve for curve in accuracy_curves(row.runs, accuracy, cost) if curve.x]
        lines.append(Lines(runs, mean_accuracy(row.runs, accuracy, cost)))
    longest = max((curve.x[-1] for one in lines for curve in one.runs), default=0.0)
    label, unit = {"steps": ("optimizer steps", 1.0), "tokens": (TOKENS, 1.0)}.get(cost, _time_unit(longest))
    scaled = [Lines([_over(curve, unit) for curve in one.runs], _over(one.mean, unit)) for one in lines]
    return Panel(f"against {label.partition(',')[0]}", label, "held-out accuracy", True, scaled, is_measured=True)


def _over(curve: Curve, unit: float) -> Curve:
    return Curve(tuple(x / unit for x in curve.x), curve.values)


def _metric_panel(rows: Sequence[Row], metric: Metric, window: int) -> Panel:
    lines = []
    for row in rows:
        runs = [_smoothed(found, window) for run in row.runs if (found := run.metric(metric.key)).x]
        lines.append(Lines(runs, mean_curve(runs)))
    return Panel(metric.title, "optimizer steps", metric.y_label, metric.is_share, lines)


def _smoothed(curve: Curve, window: int) -> Curve:
    return Curve(curve.x, tuple(map(Measured, running_mean(_means(curve), window))))


def _time_unit(longest: float) -> tuple[str, float]:
    if longest >= HOURS_FROM:
        return "wall-clock time, hours", 3600.0
    return ("wall-clock time, minutes", 60.0) if longest >= MINUTES_FROM else ("wall-clock time, seconds", 1.0)


def _drawn(title: str, caption: str, panels: Sequence[Panel], rows: Sequence[Row]) -> Plot:
    columns = max(1, LEGEND_CHARACTERS // (max(len(row.name) for row in rows) + 8))
    legend_rows = -(-len(rows) // columns)
    figure = Figure(figsize=(11, 3.6 + 0.25 * legend_rows), layout="constrained")
    is_measured = panels[0].is_measured
    grid = figure.subplots(1, len(panels), squeeze=False, sharex=not is_measured, sharey=is_measured)
    for axes, panel in zip(grid.flat, panels, strict=True):
        _draw(axes, panel)
    handles = [_line(place, [], [], is_measured=is_measured) for place in range(len(rows))]
    legend = figure.legend(handles, [row.name for row in rows], loc="outside lower center", ncols=columns, fontsize=9)
    for text in legend.get_texts():
        # A name is a name, whatever $ there is in it.
        text.set_parse_math(False)
    png = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that the font lacks shows as boxes; the tables have it in full, with its colour.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(png, format="png", dpi=120, metadata={"Software": None})
    alternative = f"{title}: {'; '.join(panel.title for panel in panels)}, for {', '.join(row.name for row in rows)}"
    return Plot(title, caption, alternative, png.getvalue())


def _draw(axes: Axes, panel: Panel) -> None:
    if panel.y_label == TCR:
        axes.set_yscale("symlog", linthresh=LINEAR_TCR)
    for place, lines in enumerate(panel.lines):
        for curve in lines.runs if len(lines.runs) > 1 else ():
            axes.plot(curve.x, _means(curve), color=color(place), linewidth=0.7, alpha=0.35)
        if lines.mean.x:
            axes.add_line(_line(place, lines.mean.x, _means(lines.mean), is_measured=panel.is_measured))
    axes.autoscale_view()
    if not axes.lines:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center")
    limits = axes.get_ylim()
    for place, lines in enumerate(panel.lines):
        if len(lines.runs) == 1 or len(lines.runs) >= LEAST_RUNS:
            _shade(axes, lines.mean, color(place))
    low, high = axes.get_ylim()
    axes.set_ylim((max(low, -SHARE_MARGIN), min(high, 1 + SHARE_MARGIN)) if panel.is_measured else limits)
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    axes.grid(alpha=0.3)
    if panel.x_label == TOKENS:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if panel.is_share:
        is_small = panel.y_label == TCR
        axes.yaxis.set_major_formatter((lambda share, _: f"{100 * share:g}%") if is_small else PercentFormatter(1.0))


def _line(place: int, xs: Sequence[float], ys: Sequence[float], *, is_measured: bool) -> Line2D:
    """The line of the configuration at a place, the same in every figure."""
    dashes = DASHES[place % len(DASHES)]
    marker = MARKERS[place % len(MARKERS)] if is_measured else ""
    return Line2D(xs, ys, color=color(place), linestyle=dashes, marker=marker, markersize=4, linewidth=1.8)


def _shade(axes: Axes, curve: Curve, shade: str) -> None:
    """The band between the bounds of a curve, where it has any."""
    bounds = [
        (x, value.low, value.high) for x, value in zip(curve.x, curve.values, strict=True) if value.low is not None
    ]
    if bounds:
        xs, lows, highs = zip(*bounds, strict=True)
        axes.fill_between(xs, lows, highs, color=shade, alpha=0.15, linewidth=0)


def _means(curve: Curve) -> list[float]:
    return [value.mean for value in curve.values]
