"""What happened to a run: what its ledger says of starts, evaluations and quarantines, and what was seen meanwhile."""

import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from dcpo_async.metrics.health import Health
from learner.ledger.reader import evaluations, quarantined
from learner.ledger.watching.overview import first_steps
from learner.ledger.watching.window import Sight
from learner.life.events import events as life_events
from learner.life.events import in_words

Kind = Literal["start", "set", "stopped", "evaluation", "quarantine", "state", "joined", "left", "restart"]
MAX_EVENTS, MAX_SEEN, MAX_NAMES = 200, 200, 6


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    Attributes:
        at: seconds since 1970; None where nobody wrote down when.
        step: optimizer steps taken until then; None where that is not known.
    """

    kind: Kind
    text: str
    at: float | None = None
    step: int | None = None


def ledger_events(sight: Sight) -> list[Event]:
    """What the ledger knows, oldest first for each kind, the newest MAX_EVENTS of each."""
    found = [*list(_starts(sight))[-MAX_EVENTS:], *list(_done(sight))[-MAX_EVENTS:]]
    for row in evaluations(sight.reader)[-MAX_EVENTS:]:
        what = {"running": "is measured", "complete": "measured", "incomplete": f"has no accuracy: {row.reason}"}
        text = f"version {row.weights_version} {what[row.state]}, problems {row.num_problems}"
        found.append(Event("evaluation", text, step=row.step))
    for quarantine in quarantined(sight.reader)[-MAX_EVENTS:]:
        found.append(Event("quarantine", f"prompt {quarantine.prompt_id} {quarantine.reason}"))
    return found


def _starts(sight: Sight) -> Iterator[Event]:
    steps = first_steps(sight)
    for start in sight.reader.starts():
        if start.incarnation == 1 or not start.changes:
            what = "the run begins" if start.incarnation == 1 else "the same settings"
        else:
            what = "; ".join(start.changes)
        text = f"start {start.incarnation}, release {start.release}: {what}"
        yield Event("start", text, _seconds(start.began_at), steps.get(start.incarnation))


def _done(sight: Sight) -> Iterator[Event]:
    """Settings that were set while the run went on, and ends of the learner in order."""
    for event in life_events(sight.reader):
        if event.kind == "set":
            yield Event("set", in_words(event.content["settings"]), _seconds(event.at), event.step)
        elif event.kind == "stopped":
            unsaved = event.content["unsaved"]
            text = f"the learner stopped, {unsaved} steps without a checkpoint" if unsaved else "the learner stopped"
            yield Event("stopped", text, _seconds(event.at), event.step)


def _seconds(at: str) -> float | None:
    try:
        return datetime.fromisoformat(at).timestamp()
    except ValueError:
        return None


class Seen:
    """Makes events of the difference between two looks at a run; time goes in. Safe to use from several threads.

    Attributes:
        since: of the first look; None before it.
    """

    def __init__(self) -> None:
        self.since: float | None = None
        self._events: deque[Event] = deque(maxlen=MAX_SEEN)
        self._state: str | None = None
        self._actors: frozenset[str] = frozenset()
        self._restarts = 0
        self._lock = threading.Lock()

    def look(self, status: Mapping[str, Any], health: Health, now: float) -> None:
        """Note what has changed since the last look."""
        with self._lock:
            step, is_first = status.get("step"), self.since is None
            actors = frozenset(str(actor["session"]) for actor in status.get("actors_connected") or [])
            restarts = int(status.get("trainer_restarts") or 0)
            if not is_first:
                for kind, text in self._changes(health, actors, restarts):
                    self._events.append(Event(kind, text, now, step))
            else:
                self.since = now
            self._state, self._actors, self._restarts = health.state, actors, restarts

    def _changes(self, health: Health, actors: frozenset[str], restarts: int) -> Iterator[tuple[Kind, str]]:
        if health.state != self._state:
            yield "state", f"{self._state} → {health.state}" + (f": {health.why}" if health.why else "")
        # Of a run that nobody works on, the status says who was there at the end.
        if health.is_live:
            for kind, names in (("joined", actors - self._actors), ("left", self._actors - actors)):
                if names:
                    yield kind, _named(names)  # type: ignore[misc]
        if restarts > self._restarts:
            yield "restart", f"the trainer was started again, {restarts} times since the learner's start"

    def events(self) -> list[Event]:
        """The newest, oldest first."""
        with self._lock:
            return list(self._events)


def _named(names: frozenset[str]) -> str:
    shown = sorted(names)[:MAX_NAMES]
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")
