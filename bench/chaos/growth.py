"""What grew during a soak, drawn."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

PANELS = {
    "memory, MiB": ("learner: MiB", "rank: MiB", "publisher: MiB", "weight server: MiB", "shared memory: MiB"),
    "descriptors": (
        "learner: descriptors",
        "rank: descriptors",
        "publisher: descriptors",
        "weight server: descriptors",
    ),
    "files of the run, MiB": (
        "ledger: MiB",
        "tensorboard: MiB",
        "metrics.jsonl: MiB",
        "timing: MiB",
        "weights: MiB",
        "checkpoints: MiB",
        "logs: MiB",
    ),
    "groups counted": ("groups",),
}


def plot_growth(samples: Sequence[dict[str, float]], path: Path) -> None:
    """Draw what was measured over the minutes of a soak.

    Args:
        samples: "seconds" since the start, and what was measured then, by name; one may lack what was not there.
        path: of the picture; its suffix is its format.
    """
    figure = Figure(figsize=(11, 7), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        for name in names:
            points = [(sample["seconds"] / 60, sample[name]) for sample in samples if name in sample]
            if points:
                axes.plot(*zip(*points, strict=True), label=name.removesuffix(": MiB").removesuffix(": descriptors"))
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("minutes")
        axes.spines[["top", "right"]].set_visible(False)
        if len(names) > 1:
            axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=80)
