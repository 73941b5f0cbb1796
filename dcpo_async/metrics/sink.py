"""What a sink of metrics is, and which steps one keeps that is bounded."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol


class Sink(Protocol):
    """Takes the metrics of each optimizer step."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take one step's metrics; a step that is trained again comes again."""

    def close(self) -> None:
        """Write down what is buffered."""


@dataclass(frozen=True, slots=True)
class Thinning:
    """Which steps are kept: the newest ones all, older ones the more sparsely the older they are.

    What is kept at one time was kept at any time before, so that it does not matter when, or how often, one thins.

    Attributes:
        whole_steps: so many of the newest steps are kept, each of them.
        measured: the steps that were measured by now, which are kept whatever their age; asked each time.
    """

    whole_steps: int
    measured: Callable[[], Collection[int]] = frozenset

    @property
    def interval(self) -> int:
        """After so many steps it is worth while to thin again."""
        return max(1, self.whole_steps // 4)

    def kept(self, newest: int) -> Callable[[int], bool]:
        """Whether a step is kept once `newest` is the newest, for whoever thins by it, in this thread or another."""
        measured = frozenset(self.measured())
        return lambda step: step in measured or self.keeps(step, newest)

    def keeps(self, step: int, newest: int) -> bool:
        """Whether a step of which nothing was measured is kept once `newest` is the newest.

        With 10,000 whole steps and newest = 100,000: of steps 80,000 to 90,000 every second one, of 60,000 to 80,000
        every fourth, of 20,000 to 60,000 every eighth, and every sixteenth before: about 26,000 in all.
        """
        times = (newest - step) // self.whole_steps
        return step % (1 << times.bit_length()) == 0
