"""Whether an engine gets on with its work: what heartbeats tell of it, and the end of one that stands still."""

import asyncio
import time

from actor.engine.interface import Engine
from actor.weights_follower import WeightsFollower
from dcpo_async.errors import EngineError
from dcpo_async.protocol.session import ActorSession
from dcpo_async.records import Activity

LOOK_SECONDS = 1.0


class Standstill:
    """For how long an engine has stood still with work in it. Pure: what is seen goes in, seconds come out."""

    def __init__(self) -> None:
        self._signs: tuple[int, ...] | None = None
        self._looked_at = self._seconds = 0.0

    def seconds(self, signs: tuple[int, ...], has_work: bool, now: float) -> float:
        """Look once more.

        Args:
            signs: numbers of which one changes while the engine works.
            has_work: it has something to do, and is not kept from it.
            now: seconds of any clock that only goes up.

        Returns for how long it has had work and no sign changed. Of the time between two looks at most twice the usual
        counts: a process that was stopped itself has seen nothing meanwhile.
        """
        if not has_work or signs != self._signs:
            self._signs, self._seconds = signs, 0.0
        else:
            self._seconds += min(now - self._looked_at, 2 * LOOK_SECONDS)
        self._looked_at = now
        return self._seconds


async def watch(engine: Engine, session: ActorSession, weights: WeightsFollower, stall_seconds: float) -> None:
    """Keep what heartbeats tell of the engine up to date, until it has stood still for too long.

    Starts of an engine and changes of its weights have deadlines of their own and are left out.

    Raises:
        EngineError: it has had work for `stall_seconds` and took no step.
    """
    standstill = Standstill()
    while True:
        running, load = engine.running_tokens, engine.load
        session.running_tokens, session.engine_steps = running, load.steps
        session.activity = activity(engine, session, weights)
        has_work = bool(running) and not weights.is_updating
        seconds = standstill.seconds(engine.signs_of_work, has_work, time.monotonic())
        if seconds >= stall_seconds:
            raise EngineError(
                f"{engine.name} hangs: no step for {seconds:.0f} s after {load.steps}, with {session.num_responses} "
                f"responses to {len(running)} leases in it (actor.engine_stall_seconds {stall_seconds:g})"
            )
        await asyncio.sleep(min(LOOK_SECONDS, stall_seconds / 4))


def activity(engine: Engine, session: ActorSession, weights: WeightsFollower) -> Activity:
    """What an actor does at the moment, in a word."""
    if engine.weights_version == 0:
        return "starting"
    if weights.is_updating:
        return "updating"
    if engine.running_tokens:
        return "generating"
    if session.num_responses:
        return "waiting for weights"
    return "grading" if session.num_working else "idle"
