"""Curves of a run as one PNG."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

PANELS = (
    ("reward", "mean reward"),
    ("rur", "RUR: responses with non-zero advantage"),
    ("tcr", "TCR: tokens whose loss was clipped"),
    ("lag_mean", "lag, optimizer steps"),
    ("entropy", "entropy, nats per token"),
    ("response_length", "response length, tokens"),
)


def plot_curves(metrics: Sequence[dict[str, float]], path: Path, smoothing: int = 5) -> None:
    """Draw each headline metric against the optimizer step, as it was and as a running mean.

    Args:
        metrics: one entry for each step, as `read_metrics` gives them.
        path: PNG to write.
        smoothing: steps of the running mean.
    """
    figure = Figure(figsize=(12, 6), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
        points = [(step["step"], step[key]) for step in metrics if key in step]
        steps, values = [step for step, _ in points], [value for _, value in points]
        axes.plot(steps, values, color="tab:blue", alpha=0.3)
        axes.plot(steps, running_mean(values, smoothing), color="tab:blue")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("optimizer step")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last `window` values at each place: `running_mean([1, 3, 5], 2)` is `[1, 2, 4]`."""
    return [sum(values[max(0, end - window) : end]) / min(end, window) for end in range(1, len(values) + 1)]
