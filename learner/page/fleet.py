"""The fleet as rows, the slowest actor first, each with what is odd about it. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

SLOW_TIMES = 3.0
"""An actor that is so many times slower than the median is named."""
QUIET_SECONDS = 10.0
OLD_TIMES, OLD_SECONDS = 4.0, 20.0
"""A lease that is so many times as old as the median of the fleet's oldest ones, and so old, is named."""


def fleet_rows(status: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each connected actor.

    Args:
        status: as in status.json.
    """
    actors = list(status.get("actors_connected") or [])
    speeds = [actor["tokens_per_second"] for actor in actors if actor.get("tokens_per_second")]
    ages = [actor.get("oldest_lease_seconds") or 0.0 for actor in actors]
    typical, usual_age = (median(values) if values else None for values in (speeds, ages))
    newest, bound = status.get("weights_version", 0), status.get("canary_bound")
    rows = []
    for actor in sorted(actors, key=_slowness):
        capacity, in_flight = actor.get("response_capacity") or 0, actor.get("responses_in_flight") or 0
        rows.append(
            {
                "actor": actor["session"],
                "host": actor.get("host", ""),
                "engine": actor.get("engine", ""),
                "activity": actor.get("activity", ""),
                "weights_version": actor["weights_version"],
                "behind": max(0, newest - actor["weights_version"]),
                "tokens_per_second": actor.get("tokens_per_second"),
                "leases": actor.get("leases", 0),
                "oldest_lease_seconds": actor.get("oldest_lease_seconds"),
                "responses_in_flight": in_flight,
                "response_capacity": capacity,
                "idle_share": max(0.0, 1 - in_flight / capacity) if capacity else None,
                "groups_accepted": actor.get("groups_accepted", 0),
                "preemptions": actor.get("preemptions", 0),
                "failures": actor.get("failures", 0),
                "heard_seconds_ago": actor.get("heard_seconds_ago"),
                "notes": [*_notes(actor, typical, usual_age, bound), *_release_note(actor, status)],
            }
        )
    return rows


def _slowness(actor: Mapping[str, Any]) -> tuple[float, str]:
    """Those of which no speed is known yet come last."""
    speed = actor.get("tokens_per_second")
    return float("inf") if speed is None else float(speed), str(actor["session"])


def _notes(
    actor: Mapping[str, Any], typical: float | None, usual_age: float | None, bound: float | None
) -> Iterator[str]:
    speed, age, heard = (actor.get(name) for name in ("tokens_per_second", "oldest_lease_seconds", "heard_seconds_ago"))
    if typical and speed is not None and speed * SLOW_TIMES < typical:
        yield f"{typical / speed:.0f} × slower than the median" if speed > 0 else "generates nothing"
    if age and usual_age is not None and age > max(OLD_SECONDS, OLD_TIMES * usual_age):
        yield "holds an old lease"
    if heard and heard > QUIET_SECONDS:
        yield "quiet"
    difference = actor.get("canary_difference")
    if bound and difference and difference > bound / 2:
        yield "its engine is close to being refused"


def _release_note(actor: Mapping[str, Any], status: Mapping[str, Any]) -> Iterator[str]:
    if actor.get("release", status.get("release")) != status.get("release"):
        yield f"of dcpo-async {actor['release']}" if actor["release"] else "of an earlier dcpo-async"


def balance(steps: Sequence[Mapping[str, float | None]]) -> dict[str, float] | None:
    """How the learner's time was spent over some steps, as means in seconds; None where that is not known."""
    known = [step for step in steps if step.get("step_seconds") is not None and step.get("wait_seconds") is not None]
    if not known:
        return None
    return {
        name: sum(float(step[f"{name}_seconds"] or 0.0) for step in known) / len(known) for name in ("step", "wait")
    }
