"""How long a part that is stopped (SIGSTOP: alive, silent) goes unnoticed, and until it works again."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.chaos.services import Fleet

STEP_TIMEOUT_SECONDS = 15.0
DEADLINE_SECONDS = 300.0
PARTS = {
    "rank": r"no progress for \d+ s and the process is stopped",
    "publisher": r"the publisher ended with code -9",
    "weight server": r"the weight server ended with code -9",
    "engine process": r"engine process \d+ ended with code",
}
"""What the learner's log says of each, or an actor's."""


@dataclass(frozen=True, slots=True)
class Noticed:
    """One part that was stopped.

    Attributes:
        named_seconds: until a line named it.
        works_seconds: until groups were counted again that came after its restart.
    """

    part: str
    named_seconds: float
    works_seconds: float


def stopped_parts(folder: Path, model: Path, seed: int, rounds: int) -> Sequence[Noticed]:
    """Stop one part after the other, so often; raises RuntimeError where one is not noticed within five minutes."""
    words = ("--lag.max_lag", "4", "--training.step_timeout_seconds", str(STEP_TIMEOUT_SECONDS))
    fleet, found = Fleet(folder, model, words, "scripted", seed), []
    try:
        for service in fleet.services:
            service.start(fleet.environment(None))
        _until(lambda: fleet.steps() >= 3, fleet)
        for _ in range(rounds):
            for part, line in PARTS.items():
                found.append(_stop(fleet, part, line))
    finally:
        fleet.close()
    return found


def _stop(fleet: Fleet, part: str, line: str) -> Noticed:
    before = _said(fleet, line)
    process = next(process for name, process in fleet.parts() if name == part)
    process.suspend()
    began = time.monotonic()
    _until(lambda: _said(fleet, line) > before, fleet)
    named = time.monotonic() - began
    _until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, fleet)
    steps = fleet.steps()
    _until(lambda: fleet.steps() >= steps + 2, fleet)
    return Noticed(part, named, time.monotonic() - began)


def _said(fleet: Fleet, line: str) -> int:
    return sum(len(re.findall(line, service.log_file.read_text(errors="replace"))) for service in fleet.services)


def _until(is_so: Callable[[], bool], fleet: Fleet) -> None:
    until = time.monotonic() + DEADLINE_SECONDS
    while not is_so():
        if time.monotonic() > until:
            raise RuntimeError(f"not within {DEADLINE_SECONDS:.0f} s: {fleet.log_ends()}")
        time.sleep(0.1)
