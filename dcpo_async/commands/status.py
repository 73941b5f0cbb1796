"""`dcpo status`: what a run is doing, from its folder or the address of its learner; the exit code is its health."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from dcpo_async.doctor.source import fetched_status, folder_named
from dcpo_async.errors import ConfigError
from dcpo_async.metrics.health import Health, health_of, is_running
from dcpo_async.metrics.jsonl import read_metrics
from dcpo_async.metrics.live_table import read_status, status_table

WATCH_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Seen:
    """A run at one moment: what its learner says, its metrics where they can be read, and how it is."""

    status: dict[str, Any]
    metrics: Sequence[Mapping[str, float]]
    health: Health

    def as_json(self) -> str:
        """The status as the learner wrote it, and under `health` what it amounts to."""
        health = {"state": self.health.state, "why": self.health.why, "age_seconds": self.health.age_seconds}
        return json.dumps(self.status | {"health": health}, indent=2)


def show_status(where: str, *, watch: bool, as_json: bool) -> int:
    """Print how a run is, again and again with `watch` until it is over; returns the exit code.

    Raises:
        ConfigError: no run is there.
    """
    look: Callable[[], Seen] = _looker(where)
    seen, console = look(), Console()
    if as_json:
        print(seen.as_json())
    elif watch:
        with Live(_table(seen), console=console, auto_refresh=False) as live:
            while seen.health.is_live or seen.health.state == "silent":
                time.sleep(WATCH_SECONDS)
                seen = look()
                live.update(_table(seen), refresh=True)
    else:
        console.print(_table(seen))
    return seen.health.exit_code


def _table(seen: Seen) -> Any:
    return status_table(str(seen.status["run_id"]), seen.status, seen.metrics, seen.health)


def _looker(where: str) -> Callable[[], Seen]:
    """What looks at a run: a folder, or else HOST:PORT or http://HOST:PORT."""
    folder = folder_named(where)
    return (lambda: _of_address(where)) if folder is None else (lambda: _of_folder(folder))


def _of_folder(folder: Path) -> Seen:
    status = read_status(folder)
    if not status:
        raise ConfigError(f"{folder}: no status.json in it; name the folder of a run that has been started")
    return Seen(status, read_metrics(folder), health_of(status, time.time(), is_running(status)))


def _of_address(address: str) -> Seen:
    status = fetched_status(address)
    last = status.get("last_step") or {}
    # By the learner's own clock: those of two machines need not agree.
    return Seen(status, [last] if last else [], health_of(status, status.get("served_at", time.time()), True))
