"""Metrics of a run as one JSON line for each optimizer step: the truth that all else is drawn from."""

import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Thread

from dcpo_async.metrics.sink import Thinning
from dcpo_async.run_folder import RunFolder

log = logging.getLogger(__name__)

SPENT = ("seconds", "generated_responses", "generated_tokens")
"""What a run has spent when it ends a step; they only grow."""
_STEP = re.compile(rb'\{"step": (\d+)[,}]')


class MetricsWriter:
    """A sink that appends to `metrics.jsonl` in the run folder.

    A step that is trained again after a restart is written again; the later line counts.

    Args:
        folder: of the run.
        thinning: which steps stay in the file; None keeps them all.
    """

    def __init__(self, folder: Path, thinning: Thinning | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._thinning = RunFolder(folder).metrics, thinning
        _end_last_line(self._path)
        earlier_seconds, self._newest = 0.0, 0
        for line in _lines(folder):
            earlier_seconds = max(earlier_seconds, line.get("seconds", 0.0))
            self._newest = max(self._newest, int(line["step"]))
        self._lines = self._path.open("a", buffering=1)
        self._started = time.monotonic() - earlier_seconds
        self._thinner: _Thinner | None = None
        # A run that is often started again may never write so many at once.
        self._written = 0

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one step's metrics and `seconds`: how long this writer and those before it have been open."""
        values = {"step": step, "seconds": round(time.monotonic() - self._started, 3), **metrics}
        try:
            self._lines.write(json.dumps(values) + "\n")
        except OSError as error:
            log.warning("%s may lack step %d: %s", self._path, step, error)
        self._newest = max(self._newest, step)
        if self._thinning is None:
            return
        if self._thinner is None and self._written % self._thinning.interval == 0:
            self._thin(self._thinning)
        elif self._thinner is not None and not self._thinner.is_alive():
            self._take_over(self._thinner)
        self._written += 1

    def close(self) -> None:
        """Close the file."""
        if self._thinner is not None:
            self._thinner.join()
            self._take_over(self._thinner)
        try:
            self._lines.close()
        except OSError as error:
            log.warning("%s may lack its last steps: %s", self._path, error)

    def _thin(self, thinning: Thinning) -> None:
        try:
            self._thinner = _Thinner(self._path, thinning.kept(self._newest))
        except OSError as error:
            log.warning("%s is not thinned, since what was measured cannot be read: %s", self._path, error)
            return
        self._thinner.start()

    def _take_over(self, thinner: "_Thinner") -> None:
        """Go on in the file that was made beside; without one, which is told of, in the old one."""
        self._thinner = None
        try:
            if thinner.finish():
                before, self._lines = self._lines, self._path.open("a", buffering=1)
                # What its buffer could not write is told of already.
                with contextlib.suppress(OSError):
                    before.close()
        except OSError as error:
            log.warning("%s is not thinned: %s", self._path, error)


class _Thinner(Thread):
    """Copies the lines that are kept into a file beside, while others are appended to the first."""

    def __init__(self, path: Path, keeps: Callable[[int], bool]) -> None:
        super().__init__(name="thins metrics", daemon=True)
        self._path, self._keeps = path, keeps
        self._beside = path.with_name(f".{path.name}.thinned")
        self._num_bytes, self._num_dropped = path.stat().st_size, 0
        self._error: OSError | None = OSError("the copy has not come to its end")

    def run(self) -> None:
        """Copy, for as long as it takes."""
        try:
            with self._path.open("rb") as lines, self._beside.open("wb") as kept:
                for line in lines.read(self._num_bytes).splitlines(keepends=True):
                    found = _STEP.match(line)
                    if found is None or self._keeps(int(found[1])):
                        kept.write(line)
                    else:
                        self._num_dropped += 1
                kept.flush()
                os.fsync(kept.fileno())
            self._error = None
        except OSError as error:
            self._error = error

    def finish(self) -> bool:
        """Put the copy, with what came since, in the place of the file; False where nothing was dropped."""
        try:
            if self._error is not None:
                raise self._error
            if self._num_dropped == 0:
                return False
            with self._path.open("rb") as lines, self._beside.open("ab") as kept:
                lines.seek(self._num_bytes)
                kept.write(lines.read())
                kept.flush()
                os.fsync(kept.fileno())
            self._beside.replace(self._path)
            return True
        finally:
            self._beside.unlink(missing_ok=True)


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The run's metrics in step order, each step once, as it was written last; a line cut by a crash is left out.

    What was spent until a step (SPENT) is that of its first line: trained again, it comes later and after more groups.
    """
    by_step: dict[int, dict[str, float]] = {}
    for values in _lines(folder):
        first = by_step.get(int(values["step"]), {})
        by_step[int(values["step"])] = values | {name: first[name] for name in SPENT if name in first}
    return [by_step[step] for step in sorted(by_step)]


def measured_steps(run: RunFolder) -> set[int]:
    """Steps of which the folder of a run says what an evaluation found, or that it came to nothing."""
    path = run.evaluation / run.metrics.name
    lines = path.read_bytes().splitlines() if path.exists() else []
    return {int(found[1]) for line in lines if (found := _STEP.match(line))}


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
