"""What state a run is in, by the status that its learner wrote: one word, and why. Pure but for `is_running`."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

State = Literal["training", "waiting", "degraded", "finished", "stopped", "dead", "silent"]

SILENT_SECONDS = 30.0
"""A learner writes its status every second; one that has not done so for longer does not work."""
LATE_SECONDS = 60.0
"""After which a batch that waits for a group is more than a pause."""
NO_STEP_SECONDS, NO_STEP_TIMES = 600.0, 10.0
"""Without a step for so long, and for so many times what one usually takes, nothing gets on."""
EXIT_CODES: Mapping[State, int] = {
    "training": 0,
    "finished": 0,
    "waiting": 1,
    "degraded": 1,
    "stopped": 3,
    "dead": 3,
    "silent": 3,
}


@dataclass(frozen=True, slots=True)
class Health:
    """How a run is.

    Attributes:
        state: training, waiting (for actors, or its first step), degraded, finished, stopped (in order, to be resumed),
            dead (its process is gone) or silent (it writes nothing, and its process is not to be seen from here).
        why: in one line; "" where nothing is to be said.
        age_seconds: since the learner wrote its status; None for one that does not say when.
    """

    state: State
    why: str
    age_seconds: float | None

    @property
    def exit_code(self) -> int:
        """0 healthy or finished, 1 degraded or waiting, 3 stopped, dead or silent."""
        return EXIT_CODES[self.state]

    @property
    def is_live(self) -> bool:
        """Whether a learner is at work."""
        return self.state in ("training", "waiting", "degraded")


def health_of(status: Mapping[str, Any], now: float, running: bool | None) -> Health:
    """Judge a run.

    Args:
        status: as in status.json.
        now: seconds since 1970, by this machine's clock.
        running: whether the learner's process is there; None where it cannot be seen from here.
    """
    written_at = status.get("written_at")
    age = None if written_at is None else max(0.0, now - written_at)
    if status.get("is_over") or (written_at is None and status.get("is_finished")):
        if status.get("is_finished"):
            return Health("finished", "all steps are trained", age)
        return Health("stopped", "the same command goes on from here", age)
    last_sign = "never said when" if age is None else f"last sign of life {duration(age)} ago"
    if running is False:
        return Health("dead", f"the learner's process is gone, {last_sign}; the same command resumes", age)
    if age is None or age > SILENT_SECONDS:
        where = "its process is there and hangs" if running else f"its process ran on {_host(status)}"
        return Health("silent", f"{last_sign}, {where}", age)
    problems = list(_problems(status, now))
    if problems:
        return Health("waiting" if status.get("actors") == 0 else "degraded", "; ".join(problems), age)
    if status.get("last_step_at") is None:
        return Health("waiting", "no step since this start of the learner", age)
    return Health("training", "", age)


def is_running(status: Mapping[str, Any], proc: Path = Path("/proc")) -> bool | None:
    """Whether the process that wrote a status is there; None where it ran on another machine, or does not say."""
    process = status.get("process")
    if not process or process["host"] != os.uname().nodename:
        return None
    return bool(start_of(process["pid"], proc) == process["started"])


def this_process() -> dict[str, Any]:
    """What tells this process from all others."""
    return {"host": os.uname().nodename, "pid": os.getpid(), "started": start_of(os.getpid())}


def start_of(pid: int, proc: Path = Path("/proc")) -> str | None:
    """When a process began, in ticks of its machine since it was started; None for one that is gone or a zombie."""
    try:
        fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def duration(seconds: float) -> str:
    """A length of time for people, in its two largest units: `duration(7500)` is "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for size, unit, below, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            number, rest = whole // size, whole % size // below
            return f"{number} {unit} {rest} {smaller}" if rest else f"{number} {unit}"
    raise AssertionError("some unit fits")


def in_force(settings: Mapping[str, Any], status: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a start, table by table, with what had been set while the run went on and held by then.

    Args:
        status: as in status.json.
    """
    found = {name: dict(value) if isinstance(value, Mapping) else value for name, value in settings.items()}
    for name, value in set_by_then(status).items():
        section, _, leaf = name.partition(".")
        found.setdefault(section, {})[leaf] = value
    return found


def set_by_then(status: Mapping[str, Any]) -> dict[str, Any]:
    """What had been set while a run went on and held when its status was written, by dotted names."""
    newest = status.get("step", 0) + 1
    return {change["name"]: change["value"] for change in _changes(status) if change["from_step"] <= newest}


def told_changes(status: Mapping[str, Any]) -> list[str]:
    """What was set while a run went on, a line each: "training.learning_rate 3e-07 from step 120 on"."""
    return [f"{one['name']} {json.dumps(one['value'])} from step {one['from_step']} on" for one in _changes(status)]


def _problems(status: Mapping[str, Any], now: float) -> Iterator[str]:
    if status.get("actors") == 0:
        yield "no actor is connected"
    waits = status.get("waiting_for") or {"seconds": 0.0}
    if waits["seconds"] >= LATE_SECONDS:
        whom = f", for lease {waits['position']} of {waits['holder']}" if waits.get("holder") else ""
        yield f"the next batch has waited {duration(waits['seconds'])}{whom}"
    last, usual = status.get("last_step_at"), status.get("seconds_per_step")
    since = status.get("started_at", now) if last is None else last
    # A run's last evaluation comes after its last step, and a fleet of one actor trains nothing while it measures.
    is_measuring = status.get("is_finished") or (status.get("evaluation") or {}).get("running")
    if not is_measuring and now - since > max(NO_STEP_SECONDS, NO_STEP_TIMES * (usual or 0.0)):
        yield f"no step for {duration(now - since)}" + (f", usually {duration(usual)}" if usual else "")
    if lacks := status.get("disk_lacks_bytes"):
        yield f"the run waits for its disk, which lacks {lacks / 1e6:.0f} MB of room, and goes on once there is more"
    free, needed = status.get("disk_free_bytes"), (status.get("last_step") or {}).get("checkpoint_bytes", 0.0)
    if free is not None and free < needed:
        yield f"{free / 1e9:.1f} GB are free on the run's disk, less than a checkpoint ({needed / 1e9:.1f} GB)"


def _host(status: Mapping[str, Any]) -> str:
    return str((status.get("process") or {}).get("host", "another machine"))


def _changes(status: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return status.get("settings_set") or ()
