"""What a tracker is, and what it is told of the run."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dcpo_async.config.sections import TrackingSettings

STEP = "progress/step"
"""The metric by which a sink that is asked says how far it has come."""

MAX_ID_CHARS = 64


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A run, as trackers are told of it.

    Attributes:
        run_id: of the ledger: one curve for each, however often the learner is started.
        name: for people.
        path: its folder.
        folder: the sink's own in it: what is not sent anywhere is kept there.
        settings: where it goes.
        config: every setting of the run, by its dotted name.
    """

    run_id: str
    name: str
    path: Path
    folder: Path
    settings: TrackingSettings
    config: Mapping[str, Any]

    @property
    def id(self) -> str:
        """The run's id in the letters that every sink takes."""
        return re.sub(r"[^\w.-]", "-", self.run_id, flags=re.ASCII)[-MAX_ID_CHARS:]


class Tracker(Protocol):
    """Takes the points of a run, each once; any exception of it ends its process, and no other."""

    def sent_step(self) -> int:
        """The last optimizer step that the other side knows of; 0 where it cannot be asked."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the numbers of one step, whose names have their group before a slash."""

    def flush(self) -> None:
        """Hand over what is buffered, as far as that can be waited for."""

    def close(self) -> None:
        """Hand over everything and end."""


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names: `flat({"lag": {"max_lag": 4}})` is `{"lag.max_lag": 4}`."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
