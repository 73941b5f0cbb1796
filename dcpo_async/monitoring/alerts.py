"""Being told: what happens to a run becomes a few events, each told once to a command or a webhook."""

import json
import logging
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal
from urllib.request import Request, urlopen

from dcpo_async.metrics.health import Health, State

log = logging.getLogger(__name__)

Kind = Literal[
    "dead",
    "silent",
    "degraded",
    "waiting",
    "stopped",
    "finished",
    "recovered",
    "trainer restarted",
    "checkpoint failed",
]
LOOK_SECONDS = 5.0
STEADY_SECONDS = 60.0
"""A state that has lasted for less is not told: a restart, a pause between two batches."""
AT_ONCE: frozenset[State] = frozenset({"finished", "stopped"})
AGAIN_SECONDS, MOST_SECONDS = 600.0, 86400.0
"""What is told again comes after ten minutes at the earliest, then twice as long each time, at most a day."""
TRIES, TRY_SECONDS, DELIVERY_SECONDS = 4, 5.0, 30.0


@dataclass(frozen=True, slots=True)
class Event:
    """What somebody is told.

    Attributes:
        why: in one line.
        at: seconds since 1970.
    """

    kind: Kind
    run: str
    why: str
    step: int
    at: float


class Changes:
    """Makes events of what is seen of a run, look by look. Pure: time goes in."""

    def __init__(self) -> None:
        self._state: State | None = None
        self._since = 0.0
        self._told: State = "training"
        self._totals: dict[str, float] = {}
        self._quiet: dict[Kind, tuple[float, float]] = {}

    def seen(self, status: Mapping[str, Any], health: Health, now: float) -> list[Event]:
        """What is to be told after a look; a look at a folder in which no learner has been tells nothing."""
        if not status:
            return []
        return [
            Event(kind, str(status.get("run_id", "")), why, int(status.get("step", 0)), round(now, 3))
            for kind, why in (*self._changed_state(health, now), *self._grown(status, now))
        ]

    def _changed_state(self, health: Health, now: float) -> Iterator[tuple[Kind, str]]:
        if health.state != self._state:
            self._state, self._since = health.state, now
        is_steady = now - self._since >= STEADY_SECONDS or health.state in AT_ONCE
        if not is_steady or health.state == self._told:
            return
        before = self._told
        kind: Kind = "recovered" if health.state == "training" else health.state
        # One that is not due yet is told later, where it lasts: nobody shall miss the second death in ten minutes.
        if self._is_due(kind, now):
            self._told = health.state
            yield kind, f"it trains again, it was {before}" if kind == "recovered" else health.why

    def _grown(self, status: Mapping[str, Any], now: float) -> Iterator[tuple[Kind, str]]:
        """Counts since the learner's start that have grown since the look before."""
        failures = (status.get("last_step") or {}).get("checkpoint_failures", 0.0)
        kinds: tuple[tuple[Kind, float], ...] = (
            ("trainer restarted", float(status.get("trainer_restarts", 0))),
            ("checkpoint failed", float(failures)),
        )
        for kind, count in kinds:
            before = self._totals.get(kind, count)
            self._totals[kind] = count
            if count > before and self._is_due(kind, now):
                yield kind, f"{count:.0f} times since the learner's start; `dcpo doctor --run RUN` says more"

    def _is_due(self, kind: Kind, now: float) -> bool:
        again_at, pause = self._quiet.get(kind, (0.0, AGAIN_SECONDS))
        if now < again_at:
            return False
        # Long after the last one of its kind, it begins anew.
        pause = AGAIN_SECONDS if again_at and now > again_at + MOST_SECONDS else pause
        self._quiet[kind] = now + pause, min(2 * pause, MOST_SECONDS)
        return True


class Teller:
    """Looks at a run again and again, in a thread of its own, and tells what happens.

    Args:
        look: the status of the run, and what it amounts to.
        command: gets the event as JSON on its standard input, and its kind and why as its last two words.
        webhook: gets it as JSON by POST; `text` in it is one line for people, which chats show.
    """

    def __init__(
        self, look: Callable[[], tuple[Mapping[str, Any], Health]], command: str | None, webhook: str | None
    ) -> None:
        self._look, self._webhook, self._changes = look, webhook, Changes()
        self._command: Sequence[str] = shlex.split(command) if command else ()

    def start(self) -> None:
        """Begin; the thread ends with its process."""
        threading.Thread(target=self._run, daemon=True, name="alerts").start()

    def _run(self) -> None:
        while True:
            try:
                status, health = self._look()
            except (OSError, ValueError) as error:
                log.warning("the run cannot be looked at: %s", error)
            else:
                for event in self._changes.seen(status, health, time.time()):
                    self.tell(event)
            time.sleep(LOOK_SECONDS)

    def tell(self, event: Event) -> None:
        """Tell an event, with several tries; one that cannot be told is logged and given up."""
        log.info("%s: %s", event.kind, event.why)
        ways: list[tuple[str, Callable[[Event], None]]] = []
        if self._command:
            ways.append(("the command", self._run_command))
        if self._webhook:
            ways.append(("the webhook", self._post))
        for name, way in ways:
            for number in range(TRIES):
                try:
                    way(event)
                    break
                except (OSError, subprocess.SubprocessError) as error:
                    log.warning("%s was not told %r, try %d of %d: %s", name, event.kind, number + 1, TRIES, error)
                    if number + 1 < TRIES:
                        time.sleep(TRY_SECONDS * 2**number)

    def _run_command(self, event: Event) -> None:
        words = [*self._command, event.kind, event.why]
        subprocess.run(
            words, input=_body(event), timeout=DELIVERY_SECONDS, check=True, capture_output=True, start_new_session=True
        )

    def _post(self, event: Event) -> None:
        assert self._webhook is not None
        request = Request(self._webhook, data=_body(event), headers={"Content-Type": "application/json"}, method="POST")
        with urlopen(request, timeout=DELIVERY_SECONDS):
            return


def _body(event: Event) -> bytes:
    text = f"{event.run} is {event.kind} at step {event.step}: {event.why}"
    return json.dumps(asdict(event) | {"text": text}).encode()
