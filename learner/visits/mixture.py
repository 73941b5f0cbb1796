"""The endless order of prompts from several sources, each with its part of all visits. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from dcpo_async.errors import ConfigError
from dcpo_async.prompts.order import PromptOrder


class Order(Protocol):
    """An endless sequence of prompt indices, a pure function of the position."""

    def index(self, position: int) -> int:
        """Index of the prompt at a position (from 0)."""
        ...

    def epoch(self, position: int) -> int:
        """How often the prompt at a position was visited before it."""
        ...


@dataclass(frozen=True, slots=True)
class SourcePart:
    """A source as the order sees it.

    Attributes:
        name: for messages.
        num_prompts: its prompts follow those of the source before.
        weight: its part of all positions is this over the sum of all weights.
    """

    name: str
    num_prompts: int
    weight: float


class MixedOrder:
    """An endless sequence of prompt indices, of which each source has its part.

    A pure function of (parts, seed, min_gap), the same on every machine. With p a source's part of all weights, its
    number k (from 0) of its own visits has its place in positions ⌊k/p⌋ … ⌈(k+1)/p⌉ - 1, so that after t positions
    it has had more than pt - 1 and fewer than pt + 1 of them: each position goes to the source whose visit is due
    first (earliest deadline first, which keeps all deadlines where the parts add up to 1; Liu and Layland 1973).
    Within a source the order is that of `PromptOrder`, which does not depend on the other sources but for their part.
    Two visits of one prompt are at least `min_gap` positions apart: g + 1 visits of a source take more than
    (g - 1)/p positions, and it has g = ⌈p · min_gap⌉ + 1 between two visits of a prompt.

    Example: weights 3 and 1 give the sources 0 0 0 1 again and again.

    Raises ConfigError where a source has fewer prompts than g.
    """

    def __init__(self, parts: Sequence[SourcePart], seed: int, min_gap: int) -> None:
        exact = [Fraction(repr(part.weight)) for part in parts]
        scale = math.lcm(*(weight.denominator for weight in exact))
        whole = [int(weight * scale) for weight in exact]
        shared = math.gcd(*whole)
        self._weights = [weight // shared for weight in whole]
        self._total = sum(self._weights)
        self._starts = [sum(part.num_prompts for part in parts[:place]) for place in range(len(parts))]
        self._orders = []
        for part, weight in zip(parts, self._weights, strict=True):
            gap = min_gap if weight == self._total else -(-weight * min_gap // self._total) + 1
            if part.num_prompts < gap:
                raise ConfigError(
                    f"source {part.name} has {part.num_prompts} usable prompts; with its weight of {part.weight:g} it "
                    f"needs {gap}, or a prompt would be open twice; lower its weight, lag.max_lag or "
                    "training.groups_per_step, or add problems"
                )
            self._orders.append(PromptOrder(part.num_prompts, seed, gap))
        self._place, self._taken = 0, [0] * len(parts)

    def index(self, position: int) -> int:
        """Index, in [0, number of all prompts), of the prompt at a position (from 0); going on is cheap."""
        source, number = self._visit(position)
        return self._starts[source] + self._orders[source].index(number)

    def epoch(self, position: int) -> int:
        """How often the source's prompts were all visited before a position (from 0)."""
        source, number = self._visit(position)
        return self._orders[source].epoch(number)

    def _visit(self, position: int) -> tuple[int, int]:
        """The source at a position, and which of its own visits that is: the pattern repeats after the whole weight."""
        if position < 0:
            raise IndexError(f"position {position} is negative; positions count from 0")
        period, place = divmod(position, self._total)
        if place < self._place:
            self._place, self._taken = 0, [0] * len(self._taken)
        while self._place < place:
            self._taken[self._due()] += 1
            self._place += 1
        source = self._due()
        return source, period * self._weights[source] + self._taken[source]

    def _due(self) -> int:
        """The source of the next place: of those whose next visit may come, the one whose must come first."""
        counted = enumerate(zip(self._taken, self._weights, strict=True))
        return min(
            (-(-(taken + 1) * self._total // weight), source)
            for source, (taken, weight) in counted
            if taken * self._total // weight <= self._place
        )[1]
