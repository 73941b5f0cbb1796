"""What was done to a run, each a row of its ledger that is bound to an optimizer step.

They are words about the run (`meta`), numbered in the order in which they came.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from learner.ledger.ledger import Ledger
from learner.ledger.reader import LedgerReader, meta_from

PREFIX = "event-"
EventKind = Literal["set", "stopped", "restored", "forked"]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that was done to a run.

    Attributes:
        step: optimizer steps that the state had behind it; what is set holds from the next one on.
        at: UTC, as ISO 8601 writes it.
        kind: what was done.
        content: the rest of it, plain values by name.
        incarnation: number of the start under which it was written; None in ledgers of before this was kept.
    """

    step: int
    at: str
    kind: EventKind
    content: Mapping[str, Any]
    incarnation: int | None = None


def events(reader: LedgerReader) -> list[Event]:
    """Everything that was done to a run, oldest first."""
    return [Event(**json.loads(text)) for _, text in meta_from(reader, PREFIX)]


def write_event(ledger: Ledger, step: int, kind: EventKind, **content: Any) -> Event:
    """Keep what is done now; it is durable with the ledger's next commit."""
    event = Event(step, now(), kind, content, ledger.incarnation)
    ledger.set_meta(event_key(len(meta_from(ledger, PREFIX)) + 1), as_text(event))
    return event


def event_key(number: int) -> str:
    """The name of the word that keeps event number `number`, from 1."""
    return f"{PREFIX}{number:08d}"


def as_text(event: Event) -> str:
    """An event as it is kept."""
    return json.dumps(dataclasses.asdict(event))


def in_words(settings: Mapping[str, Any]) -> str:
    """For people: "training.learning_rate 1e-06, checkpoint.interval_minutes null"."""
    return ", ".join(f"{name} {json.dumps(value)}" for name, value in settings.items())


def now() -> str:
    """UTC, as ISO 8601 writes it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
