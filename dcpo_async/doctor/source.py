"""Where a look at a run gets what it looks at: folder, learner over HTTP, processes here."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from dcpo_async.doctor.findings import Finding, error
from dcpo_async.errors import ConfigError
from dcpo_async.metrics.health import SILENT_SECONDS, Health, health_of, is_running
from dcpo_async.metrics.jsonl import read_metrics
from dcpo_async.metrics.live_table import read_status

ANSWER_SECONDS = 10.0
MAX_ANSWER_BYTES = 16 << 20
SECOND_LOOK_SECONDS = 3.0
"""A learner at work writes its status every second."""


@dataclass(frozen=True, slots=True)
class Source:
    """A run at one moment.

    Attributes:
        status: what its learner says; empty where it has said nothing yet.
        metrics: of its steps, the newest at least.
        health: judged by the learner's own clock.
        clock_seconds: how far the learner's clock is ahead of this machine's; 0 where that cannot be told.
        folder: None where it was asked over HTTP.
    """

    status: Mapping[str, Any]
    metrics: Sequence[Mapping[str, float]]
    health: Health
    clock_seconds: float = 0.0
    folder: Path | None = None


def look(where: str | Path) -> Source:
    """Look at a run, by its folder or by HOST:PORT of its learner; raises ConfigError where none answers."""
    if (folder := folder_named(where)) is not None:
        return _of_folder(folder)
    status = fetched_status(str(where))
    last = status.get("last_step") or {}
    served_at = status.get("served_at")
    ahead = 0.0 if served_at is None else served_at - time.time()
    health = health_of(status, time.time() if served_at is None else served_at, True)
    return Source(status, [last] if last else [], health, ahead)


def folder_named(where: str | Path) -> Path | None:
    """The folder that a word names; None where it is the address of a learner, and no folder of that name is there."""
    folder, text = Path(where), str(where)
    is_address = text.startswith(("http://", "https://")) or text.rpartition(":")[2].isdecimal()
    return None if is_address and not folder.is_dir() else folder


def fetched_status(where: str) -> dict[str, Any]:
    """status.json of the learner at an address; raises ConfigError."""
    address = (where if "://" in where else f"http://{where}").rstrip("/")
    try:
        with urlopen(f"{address}/status.json", timeout=ANSWER_SECONDS) as answer:
            found: dict[str, Any] = json.loads(answer.read(MAX_ANSWER_BYTES))
            return found
    except (URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ConfigError(f"{address}: no learner answers there ({reason}); it listens where --http says") from None


def _of_folder(folder: Path) -> Source:
    status, now = read_status(folder), time.time()
    ahead, written_at = 0.0, status.get("written_at")
    if written_at is not None and not status.get("is_over") and not -1.0 <= now - written_at <= SILENT_SECONDS:
        # Silence, or two clocks: a learner at work writes on meanwhile.
        time.sleep(SECOND_LOOK_SECONDS)
        status, now = read_status(folder), time.time()
        if status["written_at"] != written_at:
            ahead = status["written_at"] - now
    health = health_of(status, now + ahead, is_running(status))
    return Source(status, read_metrics(folder), health, ahead, folder)


STOPPED = "Tt"
"""By a signal, or by a debugger (proc(5))."""
PARTS = {
    "learner.trainer.rank": "the trainer",
    "learner.publisher": "the publisher",
    "learner.weights.server": "the weight server",
    "learner.launcher": "the learner",
}


def parts(status: Mapping[str, Any], proc: Path = Path("/proc")) -> Iterator[Finding]:
    """Stopped processes of a run's learner; none where it runs on another machine, which cannot be seen."""
    if not is_running(status, proc):
        return
    parents = dict(_processes(proc))
    family, pids = set[int](), {int(status["process"]["pid"])}
    while pids:
        family |= pids
        pids = {pid for pid, (parent, _) in parents.items() if parent in pids} - family
    for pid in sorted(family & parents.keys()):
        if parents[pid][1] in STOPPED:
            yield error(
                f"{_name(pid, proc)}, process {pid}, is stopped (a signal, or a debugger)",
                f"`kill -CONT {pid}`; where that does not help, kill it: it is started again, and nothing is lost",
            )


def _processes(proc: Path) -> Iterator[tuple[int, tuple[int, str]]]:
    """Each process with its parent and its state."""
    for path in proc.iterdir():
        if path.name.isdecimal():
            try:
                fields = (path / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            yield int(path.name), (int(fields[1]), fields[0])


def _name(pid: int, proc: Path) -> str:
    try:
        words = (proc / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        words = []
    return next((PARTS[word] for word in words if word in PARTS), "a part of the learner")
