"""What a sink of metrics is."""

from collections.abc import Mapping
from typing import Protocol


class Sink(Protocol):
    """Takes the metrics of each optimizer step."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take one step's metrics; a step that is trained again comes again."""

    def close(self) -> None:
        """Write down what is buffered."""
