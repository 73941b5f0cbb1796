"""Whether what a run keeps, and will have kept at its end, fits what is free on its disk."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dcpo_async.doctor.findings import Finding, error, warning
from dcpo_async.metrics.health import duration
from dcpo_async.run_folder import RunFolder

GROWN_STEPS = 20
"""Before so many, what a run keeps says little about what it will."""
SOON_SECONDS = 2 * 86400.0
"""Of a run without a last step: a disk that is full by then is worth a word."""


class Grown(NamedTuple):
    """Bytes of a run folder that stay for good: rows of the ledger and metrics, and arrays of groups in the ledger."""

    rows: int
    arrays: int


def grown(folder: Path) -> Grown:
    """What a run has kept until now."""
    where = RunFolder(folder)
    metrics = [where.metrics, *_files(where.tensorboard)]
    ledger = [path for path in _files(where.ledger) if not path.name.endswith(("-wal", "-shm"))]
    rows = [path for path in ledger if path.suffix == ".sqlite"]
    return Grown(_size(*metrics, *rows), _size(*(path for path in ledger if path not in rows)))


def disk(status: Mapping[str, Any], config: Mapping[str, Any], kept: Grown | None = None) -> Iterator[Finding]:
    """Whether the next checkpoint and version fit, and all that comes until the last step.

    Args:
        kept: what the run has kept until now; None where that cannot be seen.
    """
    step, settings = status.get("last_step") or {}, config.get("checkpoint", {})
    checkpoint, version = step.get("checkpoint_bytes", 0.0), step.get("publish_bytes", 0.0)
    free = status.get("disk_free_bytes")
    # One checkpoint is written while those that are kept stand, and one version.
    next_ones = checkpoint + version
    if lacks := status.get("disk_lacks_bytes"):
        yield error(
            f"the run waits for its disk, which lacks {lacks / 1e6:.0f} MB of room",
            "make room, and it goes on by itself: its parts and actors wait meanwhile",
        )
    elif free is not None and free < next_ones:
        yield error(
            f"{free / 1e9:.2f} GB are free on the run's disk, a checkpoint and a version take {next_ones / 1e9:.2f} GB",
            f"make room, or keep fewer than checkpoint.keep_last {settings.get('keep_last', 2)} and lag.keep_versions",
        )
    elif free is not None and kept is not None and status.get("step", 0) >= GROWN_STEPS:
        yield from _forecast(status, settings, kept, free - next_ones, checkpoint)
    if step.get("checkpoint_failures"):
        yield error(
            f"{step['checkpoint_failures']:.0f} checkpoints could not be written since the learner's start",
            "make room on the run's disk: three in a row end the run; the learner's log has the reason",
        )


def _forecast(
    status: Mapping[str, Any], settings: Mapping[str, Any], kept: Grown, room: float, checkpoint: float
) -> Iterator[Finding]:
    done, last, pace = status["step"], status.get("max_steps"), status.get("seconds_per_step")
    of_step = kept.rows / done
    if every := settings.get("keep_every_steps"):
        # Checkpoints that are kept for good, and with them all arrays since the oldest.
        of_step += checkpoint / every + kept.arrays / done
    if not of_step:
        return
    steps = room / of_step
    is_short = last is not None and done + steps < last
    is_soon = last is None and pace is not None and steps * pace < SOON_SECONDS
    if is_short or is_soon:
        when = f", in {duration(steps * pace)}" if pace else ""
        to_go = f", {last - done} steps are left" if last is not None else ""
        yield warning(
            f"the run's disk is full {steps:.0f} steps from now{when}: each keeps {of_step / 1e6:.3g} MB{to_go}",
            "make room or move the run folder" + (", or a larger checkpoint.keep_every_steps" if every else ""),
        )


def _files(folder: Path) -> list[Path]:
    return [Path(base) / name for base, _, names in os.walk(folder) for name in names]


def _size(*paths: Path) -> int:
    """Bytes of files; nothing for what has gone meanwhile."""
    total = 0
    for path in paths:
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total
