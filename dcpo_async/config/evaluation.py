"""The table of a configuration file about evaluations that a run orders from its own actors."""

from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import Field, model_validator

from dcpo_async.config.sections import Positive, Section
from dcpo_async.limits import MAX_GROUP_SIZE


class EvaluationSettings(Section):
    """Held-out accuracy, measured by the run's own actors while it trains (docs/evaluation.md)."""

    every_steps: Positive | None = None
    """The first version published on or after each multiple of so many optimizer steps is measured; none measures
    nothing."""
    data: tuple[str, ...] = ()
    """Problem sets, named as `data.source` is. Training prompts that stand in one of them are treated as
    `data.contamination` says."""
    limit: Positive | None = None
    """The first so many problems of each set; none takes all."""
    samples: Annotated[int, Field(gt=0, le=MAX_GROUP_SIZE)] = 4
    """n of Avg@n, responses to each problem; 1 where the temperature is 0."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Of the responses; 0 takes the likeliest token each time."""
    max_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """At most this share of the actors stays at the version that is measured, one at least, and at most this share of
    the fleet's places is taken by its responses while training has use for them."""
    hold_seconds: Annotated[float, Field(gt=0, le=1e9)] = 900.0
    """An evaluation that is not answered by then ends as incomplete, and has no accuracy; actors go on to newer
    versions."""
    keep_best: bool = True
    """Keep a copy of the best version that was measured, as `evaluation/best` in the run folder."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        problem = next(self._problems(), None)
        if problem is not None:
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        if self.every_steps is None:
            for name, field in type(self).model_fields.items():
                if getattr(self, name) != field.default:
                    yield f"{name} would not be read, it needs every_steps"
        elif not self.data:
            yield f"every_steps {self.every_steps} measures nothing: name problem sets in data"
        if self.temperature == 0 and self.samples > 1:
            yield f"samples {self.samples} at temperature 0 would be one response so many times; set samples to 1"
