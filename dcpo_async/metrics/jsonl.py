"""Metrics of a run as one JSON line for each optimizer step: the truth that all else is drawn from."""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from dcpo_async.run_folder import RunFolder

SPENT = ("seconds", "generated_responses", "generated_tokens")
"""What a run has spent when it ends a step; they only grow."""


class MetricsWriter:
    """A sink that appends to `metrics.jsonl` in the run folder.

    A step that is trained again after a restart is written again; the later line counts.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        _end_last_line(RunFolder(folder).metrics)
        earlier_seconds = max((line.get("seconds", 0.0) for line in _lines(folder)), default=0.0)
        self._lines = RunFolder(folder).metrics.open("a", buffering=1)
        self._started = time.monotonic() - earlier_seconds

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one step's metrics and `seconds`: how long this writer and those before it have been open."""
        values = {"step": step, "seconds": round(time.monotonic() - self._started, 3), **metrics}
        self._lines.write(json.dumps(values) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The run's metrics in step order, each step once, as it was written last; a line cut by a crash is left out.

    What was spent until a step (SPENT) is that of its first line: trained again, it comes later and after more groups.
    """
    by_step: dict[int, dict[str, float]] = {}
    for values in _lines(folder):
        first = by_step.get(int(values["step"]), {})
        by_step[int(values["step"])] = values | {name: first[name] for name in SPENT if name in first}
    return [by_step[step] for step in sorted(by_step)]


def _lines(folder: Path) -> Iterator[dict[str, float]]:
    """Every whole line, in the order of writing."""
    path = RunFolder(folder).metrics
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)


def _end_last_line(path: Path) -> None:
    """Without it the first line of a new writer would be lost in one that a crash cut short."""
    with path.open("a+b") as file:
        if file.tell() == 0:
            return
        file.seek(-1, os.SEEK_END)
        if file.read() != b"\n":
            file.write(b"\n")
