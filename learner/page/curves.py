"""The curves of a run: metrics.jsonl as columns that grow with it, and as few points of them as a screen shows."""

import json
import math
import os
import threading
from array import array
from bisect import bisect_left
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcpo_async.metrics.jsonl import SPENT

KEYS = (
    "reward",
    "rur",
    "tcr",
    "lag_mean",
    "entropy",
    "response_length",
    "truncated",
    "actor_tokens_per_second",
    "tokens_per_second",
    "step_seconds",
    "wait_seconds",
    "grad_norm",
    "kl_behavior",
    *SPENT,
)
POINTS = 400
READ_BYTES = 1 << 20


class Curves:
    """The metrics of a run by step, each step once, as it was written last; safe to use from several threads.

    Args:
        path: of metrics.jsonl; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock, self._looking = path, threading.Lock(), threading.Lock()
        self._revision, self._file = 0, (0, 0)
        self._clear()

    def _clear(self) -> None:
        self._offset, self._rest = 0, b""
        self._steps = array("q")
        self._columns = {key: array("d") for key in KEYS}

    def look(self) -> None:
        """Take in the lines that were added; one that has become shorter, or was put in its place, is another file.

        Where another thread is at it, what it has found until now is there to be shown.
        """
        if not self._looking.acquire(blocking=False):
            return
        try:
            while self._read_some():
                pass
        finally:
            self._looking.release()

    def _read_some(self) -> bool:
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                if (found.st_dev, found.st_ino) != self._file or found.st_size < self._offset:
                    with self._lock:
                        self._clear()
                    self._file = found.st_dev, found.st_ino
                file.seek(self._offset)
                content = file.read(READ_BYTES)
        except FileNotFoundError:
            return False
        self._offset += len(content)
        *lines, self._rest = (self._rest + content).split(b"\n")
        # Nobody who asks for the curves waits while lines are parsed.
        parsed = [values for line in lines if (values := _parsed(line)) is not None]
        with self._lock:
            for values in parsed:
                self._add(values)
        return len(content) == READ_BYTES

    def _add(self, values: dict[str, Any]) -> None:
        step = int(values["step"])
        self._revision += 1
        if not self._steps or step > self._steps[-1]:
            place = len(self._steps)
            self._steps.append(step)
            for column in self._columns.values():
                column.append(math.nan)
        else:
            place = bisect_left(self._steps, step)
            if self._steps[place] != step:
                return
        for key, column in self._columns.items():
            value = values.get(key)
            # What was spent until a step is that of its first line.
            is_kept = key in SPENT and not math.isnan(column[place])
            if isinstance(value, int | float) and not is_kept:
                column[place] = value

    @property
    def revision(self) -> int:
        """Grows with every line."""
        return self._revision

    def recent(self, count: int) -> list[dict[str, float | None]]:
        """Values of the newest steps, oldest first."""
        with self._lock:
            return [
                {key: _plain(column[place]) for key, column in self._columns.items()}
                for place in range(max(0, len(self._steps) - count), len(self._steps))
            ]

    def mean_of_newest(self, key: str, share: float) -> float | None:
        """Mean of a metric over a share of the steps, the newest, one at least; None where it has no value there."""
        with self._lock:
            column = self._columns[key]
            values = [value for value in column[-max(1, round(share * len(column))) :] if math.isfinite(value)]
        return _plain(fmean(values)) if values else None

    def points(self, count: int = POINTS) -> dict[str, Any]:
        """At most `count` points of each curve, for JSON.

        Returns: `steps`, the last of each stretch; by key in `series` mean, low and high of each stretch, None where it
        has no value; `newest`, the values of the last step; `num_steps`.
        """
        with self._lock:
            steps = np.array(self._steps, dtype=np.int64)
            columns = {key: np.array(column) for key, column in self._columns.items()}
            revision = self._revision
        if not len(steps):
            return {"revision": revision, "num_steps": 0, "steps": [], "series": {}, "newest": {}}
        begins = np.unique(np.linspace(0, len(steps), min(count, len(steps)), endpoint=False).astype(np.int64))
        ends = np.append(begins[1:], len(steps)) - 1
        return {
            "revision": revision,
            "num_steps": len(steps),
            "steps": steps[ends].tolist(),
            "series": {key: stretches(column, begins) for key, column in columns.items() if np.isfinite(column).any()},
            "newest": {key: _plain(column[-1]) for key, column in columns.items()},
        }


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A line's values; None for one that a crash has cut short."""
    try:
        values: dict[str, Any] = json.loads(line)
        int(values["step"])
    except (ValueError, TypeError, KeyError):
        return None
    return values


def stretches(values: NDArray[np.float64], begins: NDArray[np.int64]) -> dict[str, list[float | None]]:
    """Mean, low and high of the stretches that begin at these places; what is not finite is left out.

    Example: (1, 3, nan, 5) with beginnings 0 and 2 has the means 2 and 5, lows 1 and 5, highs 3 and 5.
    """
    is_there = np.isfinite(values)
    counts = np.add.reduceat(is_there.astype(np.int64), begins)
    sums = np.add.reduceat(np.where(is_there, values, 0.0), begins)
    found = {
        "mean": np.where(counts > 0, sums / np.maximum(counts, 1), math.nan),
        "low": np.minimum.reduceat(np.where(is_there, values, math.inf), begins),
        "high": np.maximum.reduceat(np.where(is_there, values, -math.inf), begins),
    }
    return {name: [_plain(value) for value in row] for name, row in found.items()}


def _plain(value: float) -> float | None:
    """Six digits of a number; None where it is none."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
