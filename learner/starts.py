"""The settings of every start of a run, kept in its ledger with what differs from the start before."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from learner.ledger.ledger import Ledger
from learner.ledger.reader import Start


def write_start(ledger: Ledger, settings: Mapping[str, Any], release: str, now: datetime) -> str:
    """Keep what this start of the learner was given; returns a line for its log.

    Args:
        settings: all of them, resolved, as plain values.
        release: of dcpo-async.
        now: with its time zone.
    """
    starts, number = ledger.starts(), ledger.incarnation
    changes = changed(starts[-1], settings, release) if starts else ()
    began_at = now.isoformat(timespec="seconds")
    ledger.write_start(Start(number, began_at, release, dict(settings), changes))
    if not starts:
        return f"start {number} of the run; its settings are the first that the ledger keeps"
    return f"start {number} of the run; since start {starts[-1].incarnation}: {'; '.join(changes) or 'nothing changed'}"


def changed(before: Start, settings: Mapping[str, Any], release: str) -> tuple[str, ...]:
    """A line for each setting that differs, such as "lag.max_lag 4 → 8"; the release is one of them."""
    old = {"release": before.release, **_leaves(before.settings)}
    new = {"release": release, **_leaves(settings)}
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return tuple(f"{name} {_text(old, name)} → {_text(new, name)}" for name in names)


def _text(values: Mapping[str, Any], name: str) -> str:
    return json.dumps(values[name], ensure_ascii=False) if name in values else "(no such setting)"


def _leaves(settings: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names; of several tables of one name, each has its number."""
    found = dict[str, Any]()
    for name, value in settings.items():
        is_tables = isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
        inner = dict(enumerate(value)) if is_tables else value
        found |= _leaves(inner, f"{prefix}{name}.") if isinstance(inner, dict) else {f"{prefix}{name}": value}
    return found
