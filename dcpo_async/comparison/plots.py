"""The figures of a comparison, as SVG: a line for each configuration, with its interval as a band."""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, PercentFormatter

from dcpo_async.comparison.figures import LEAST_RUNS, Curve, Measured, mean_curve
from dcpo_async.comparison.runs import Cost
from dcpo_async.comparison.summary import Accuracy, Comparison, Row, accuracy_curves, mean_accuracy
from dcpo_async.metrics.curves import running_mean

COLORS = (
    ("#0072B2", "#4DA6E0"),
    ("#D55E00", "#FF8A3D"),
    ("#009E73", "#2FC79A"),
    ("#CC79A7", "#E6A3C8"),
    ("#56B4E9", "#9AD4F7"),
    ("#E69F00", "#F2C14B"),
    ("#010101", "#E8E8E8"),
)
"""On light ground and on dark. Told apart with every kind of colour vision (Okabe & Ito 2008); their yellow is too pale
for lines."""
EDGE = "#7f7f80"
"""Of axes and grid."""
DASHES, SVG_DASHES = ("-", "--", "-.", ":"), ("none", "6 3", "6 3 2 3", "2 3")
"""So that lines which lie upon each other show, and a print in grey can be read."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SMOOTHED_SHARE = 20
"""A running mean goes over the steps of the longest run, divided by this."""
MINUTES_FROM, HOURS_FROM = 600.0, 7200.0
SHARE_MARGIN = 0.02
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
    "Reward": (Metric("reward", "mean reward of a step's responses", "reward"),),
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
    """Panels side by side, and what stands with them.

    Attributes:
        panels: of each what it shows in words, and its SVG.
    """

    title: str
    caption: str
    panels: tuple[tuple[str, str], ...]


def plots(comparison: Comparison) -> Iterator[Plot]:
    """Every figure, in the order of the report: the reward first, then held-out accuracy where there is any."""
    rows = comparison.rows
    window = max(1, round(max(max(row.steps) for row in rows) / SMOOTHED_SHARE))
    for number, (title, metrics) in enumerate(TRAINING.items()):
        caption = f"Running mean over {window} steps. {BAND}, cut where it leaves the axes."
        yield _drawn(title, caption, [_metric_panel(rows, metric, window) for metric in metrics], rows)
        if number == 0 and comparison.accuracy is not None:
            panels = [_accuracy_panel(rows, comparison.accuracy, cost) for cost in ("steps", "tokens", "seconds")]
            yield _drawn(*ACCURACY, panels, rows)


def color(place: int) -> str:
    """The colour of the configuration at a place, as #RRGGBB, on light ground."""
    return COLORS[place % len(COLORS)][0]


def keys(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """What tells the line of each configuration: the page's variable for its colour, and its dashes for SVG."""
    return [(f"var(--line-{place % len(COLORS)})", SVG_DASHES[place % len(DASHES)]) for place in range(len(rows))]


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
    names = ", ".join(row.name for row in rows)
    drawn = [
        (f"{title}: {panel.title}, for {names}", _svg(panel, f"{title}/{place}")) for place, panel in enumerate(panels)
    ]
    return Plot(title, caption, tuple(drawn))


def _svg(panel: Panel, salt: str) -> str:
    """A panel as an element of a page: its texts are the page's, and its colours go by the page's variables."""
    figure = Figure(figsize=(4.4, 3.1), layout="constrained")
    _draw(figure.subplots(), panel)
    drawn = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn by the browser, which has it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(
            drawn, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    text = drawn.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"| (width|height)="[\d.]+pt"', "", text).replace("xlink:href", "href")
    text = re.sub(r"font: (\d+)px [^;\"]*", r"font-size: \1px", text)
    for place, (light, _) in enumerate(COLORS):
        text = text.replace(light.lower(), f"var(--line-{place})")
    return text.replace(EDGE, "var(--edge)")


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
    _label(axes, panel)


def _label(axes: Axes, panel: Panel) -> None:
    """Titles, units and grid."""
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
        # Whatever $ there is in it.
        text.set_parse_math(False)
    axes.grid(alpha=0.3, color=EDGE)
    axes.tick_params(color=EDGE)
    axes.spines[:].set_color(EDGE)
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
