"""The table of a configuration file about trackers of experiments."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from dcpo_async.config.sections import Section

SinkName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
Word = Annotated[str, Field(min_length=1, max_length=120)]


class TrackingSettings(Section):
    """Where the metrics go beside metrics.jsonl (docs/tracking.md)."""

    sinks: tuple[SinkName, ...] = ("tensorboard",)
    """tensorboard, wandb, mlflow, trackio, or none of them; each has a process of its own, whose failures the training
    does not feel."""
    project: Word = "dcpo-async"
    """Project of W&B and trackio, experiment of MLflow."""
    name: Annotated[str, Field(max_length=120)] = ""
    """What the run is called there; empty is the name of its folder."""
    group: Annotated[str, Field(max_length=120)] = ""
    """Runs that belong together, such as seeds of one configuration."""
    tags: Annotated[tuple[Word, ...], Field(max_length=32)] = ()
    """Words to find the run by, of W&B and MLflow."""
    mode: Literal["online", "offline"] = "online"
    """offline keeps everything in the run folder's `tracking`; online sends it where the sink's own environment
    variables say."""

    @field_validator("sinks")
    @classmethod
    def _once_each(cls, sinks: tuple[SinkName, ...]) -> tuple[SinkName, ...]:
        if len(set(sinks)) < len(sinks):
            raise ValueError("names a sink twice")
        return sinks
