"""The figures of a comparison, each as a PNG: a line for each configuration, with its interval as a band."""

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, PercentFormatter

from dcpo_async.comparison.figures import Curve, Measured, mean_curve
from dcpo_async.comparison.runs import ComparedRun, Cost
from dcpo_async.comparison.summary import Comparison, Row, accuracy_curves
from dcpo_async.demo.plot import running_mean

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Told apart with every kind of colour vision (Okabe & Ito 2008); their yellow is too pale for lines."""
DASHES = ("-", "--", "-.", ":")
"""So that lines which lie upon each other show, and a print in grey can be read."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SMOOTHED_SHARE = 20
"""A running mean goes over the steps of the longest run, divided by this."""
MINUTES_FROM, HOURS_FROM = 600.0, 7200.0
SHARE_MARGIN = 0.02
LEGEND_CHARACTERS = 110
"""In one row of a legend, about."""
BAND = "Thin lines are single runs; the band is Student's 95 % interval over a configuration's runs"
ACCURACY = (
    "Held-out accuracy",
    f"After optimizer steps, generated tokens and wall-clock time. {BAND}; a configuration of one run shows the "
    "evaluation's own interval, over problems.",
)
"""Title and caption."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes: the curve of every run, by configuration.

    Attributes:
        curves: of one configuration's runs, those without a value left out.
        is_measured: each point is a measurement, and marked; else it is a running mean.
    """

    title: str
    x_label: str
    y_label: str
    is_share: bool
    is_measured: bool
    curves: Callable[[Row], list[Curve]]


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
        panels = [_accuracy_panel(comparison, cost) for cost in ("steps", "tokens", "seconds")]
        yield _drawn(*ACCURACY, panels, rows)
    for title, panels in (
        (
            "Response utilization ratio (RUR)",
            [
                _metric_panel("rur", "all visits", "RUR", window, is_share=True),
                _metric_panel("rur_later", "second and later visits", "RUR", window, is_share=True),
            ],
        ),
        (
            "Token clipping ratio (TCR) and entropy",
            [
                _metric_panel("tcr", "token clipping ratio", "TCR", window, is_share=True),
                _metric_panel("entropy", "entropy", "nats per token", window),
            ],
        ),
        (
            "Response length and lag",
            [
                _metric_panel("response_length", "response length", "tokens of a response", window),
                _metric_panel("lag_mean", "lag", "optimizer steps", window),
            ],
        ),
    ):
        yield _drawn(title, f"Running mean over {window} steps. {BAND}, cut where it leaves the axes.", panels, rows)


def color(place: int) -> str:
    """The colour of the configuration at a place, as #RRGGBB."""
    return COLORS[place % len(COLORS)]


def _accuracy_panel(comparison: Comparison, cost: Cost) -> Panel:
    accuracy = comparison.accuracy
    labels, scale = {"steps": "optimizer steps", "tokens": "generated tokens"}, 1.0
    if cost == "seconds":
        ends = [curve.x[-1] for row in comparison.rows for curve in accuracy_curves(row.runs, accuracy, cost)]
        labels["seconds"], scale = _time_unit(max(ends, default=0.0))

    def curves(row: Row) -> list[Curve]:
        found = accuracy_curves(row.runs, accuracy, cost)
        return [Curve(tuple(x / scale for x in curve.x), curve.values) for curve in found]

    return Panel(f"against {labels[cost].partition(',')[0]}", labels[cost], "held-out accuracy", True, True, curves)


def _metric_panel(key: str, title: str, y_label: str, window: int, *, is_share: bool = False) -> Panel:
    def curve(run: ComparedRun) -> Curve:
        found = run.metric(key)
        means = running_mean([value.mean for value in found.values], window)
        return Curve(found.x, tuple(map(Measured, means)))

    def curves(row: Row) -> list[Curve]:
        return [found for run in row.runs if (found := curve(run)).x]

    return Panel(title, "optimizer steps", y_label, is_share, False, curves)


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
        _draw(axes, panel, rows)
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


def _draw(axes: Axes, panel: Panel, rows: Sequence[Row]) -> None:
    for place, row in enumerate(rows):
        _draw_lines(axes, panel.curves(row), place, is_measured=panel.is_measured)
    if not axes.lines:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center")
    limits = axes.get_ylim()
    for place, row in enumerate(rows):
        _shade(axes, mean_curve(panel.curves(row)), color(place))
    low, high = axes.get_ylim()
    axes.set_ylim((max(low, -SHARE_MARGIN), min(high, 1 + SHARE_MARGIN)) if panel.is_measured else limits)
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    axes.grid(alpha=0.3)
    if panel.x_label == "generated tokens":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if panel.is_share:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _draw_lines(axes: Axes, curves: Sequence[Curve], place: int, *, is_measured: bool) -> None:
    for curve in curves if len(curves) > 1 else ():
        axes.plot(curve.x, _means(curve), color=color(place), linewidth=0.7, alpha=0.35)
    if curves:
        curve = mean_curve(curves)
        axes.add_line(_line(place, curve.x, _means(curve), is_measured=is_measured))
        axes.autoscale_view()


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
