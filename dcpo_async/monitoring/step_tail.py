"""Distributions of what steps take, from the lines that are added to metrics.jsonl."""

import json
from pathlib import Path

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
        self._offset = path.stat().st_size if path.exists() else 0
        self._rest = b""
        self._histograms = {
            key: Histogram(f"dcpo_{name}_seconds", meaning, buckets=BUCKETS, registry=self.registry)
            for name, key, meaning in KINDS
        }

    def look(self) -> None:
        """Take in the lines that were added."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, 2)
                if size < self._offset:
                    self._offset, self._rest = 0, b""
                file.seek(self._offset)
                content = file.read(MAX_READ_BYTES)
        except FileNotFoundError:
            return
        self._offset += len(content)
        *lines, self._rest = (self._rest + content).split(b"\n")
        for line in lines:
            self._observe(line)

    def _observe(self, line: bytes) -> None:
        try:
            metrics = json.loads(line)
        except ValueError:
            # A crash has cut it short.
            return
        for key, histogram in self._histograms.items():
            if key in metrics:
                histogram.observe(metrics[key])
