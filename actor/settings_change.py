"""Other settings of a learner that came back: what an actor at work takes over, and what needs a new start. Pure."""

from collections.abc import Iterator

from pydantic import BaseModel

from dcpo_async.protocol.messages import Welcome

TAKEN_OVER = {
    "weights_version",
    "ask",
    "hold",
    "seed",
    "sampling.temperature",
    "sampling.stop",
    "sampling.stop_token_ids",
    "actor.max_failures",
    "actor.regrade_share",
    "heartbeat_seconds",
    "silence_seconds",
    "release",
}
"""Holds from the next lease on; engine, grading workers and fetches were made by all other settings."""


def needs_new_start(before: Welcome, after: Welcome) -> list[str]:
    """The settings that differ and cannot be taken over, such as `grading.extraction: boxed → answer`."""
    return [
        f"{name}: {old} → {new}"
        for (name, old), (_, new) in zip(_leaves(before), _leaves(after), strict=True)
        if old != new and name not in TAKEN_OVER
    ]


def _leaves(settings: BaseModel, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
