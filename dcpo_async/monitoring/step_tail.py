"""Distributions of what steps take, from the lines that are added to metrics.jsonl."""

import json
import os
from pathlib import Path
from typing import BinaryIO

from prometheus_client import CollectorRegistry, Histogram

BUCKETS = (0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1200, 3600)
KINDS = (
    ("step_duration", "step_seconds", "Compute of a step."),
    ("step_wait", "wait_seconds", "That a step waited for its groups."),
    ("weights_publication", "publish_seconds", "Until actors heard of a version."),
)
MAX_READ_BYTES = 8 << 20


class StepTail:
    """Observes the steps that are written after it began; all before would count as having happened at once.

    Attributes:
        registry: of the histograms.
    """

    def __init__(self, path: Path) -> None:
        self._path, self.registry = path, CollectorRegistry()
        self._offset, self._file, self._rest, self._last = 0, 0, b"", b""
        if path.exists():
            self._file, content = path.stat().st_ino, path.read_bytes()
            self._offset, self._last = len(content), content[:-1].rpartition(b"\n")[2]
        self._histograms = {
            key: Histogram(f"dcpo_{name}_seconds", meaning, buckets=BUCKETS, registry=self.registry)
            for name, key, meaning in KINDS
        }

    def look(self) -> None:
        """Take in the lines that were added."""
        try:
            with self._path.open("rb") as file:
                size, number = file.seek(0, 2), os.fstat(file.fileno()).st_ino
                if size < self._offset or number != self._file:
                    self._file, self._rest = number, b""
                    self._offset = self._after_last(file)
                file.seek(self._offset)
                content = file.read(MAX_READ_BYTES)
        except FileNotFoundError:
            return
        self._offset += len(content)
        *lines, self._rest = (self._rest + content).split(b"\n")
        for line in lines:
            self._observe(line)
            self._last = line

    def _after_last(self, file: BinaryIO) -> int:
        """Where it goes on in a file that took the place of the one before, as one does that lacks older steps.

        That is behind the newest line it knows; one that is not there is of another run.
        """
        file.seek(0)
        at = file.read().rfind(self._last + b"\n") if self._last else -1
        return 0 if at < 0 else at + len(self._last) + 1

    def _observe(self, line: bytes) -> None:
        try:
            metrics = json.loads(line)
        except ValueError:
            # A crash has cut it short.
            return
        for key, histogram in self._histograms.items():
            if key in metrics:
                histogram.observe(metrics[key])
