"""Brings an engine to every newer weights version: fetch, adopt, let waiting leases go on."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from actor.engine.interface import Engine, UpdateTiming
from actor.learner_link import Connect, LearnerLink
from actor.weights.cache import default_cache_folder
from actor.weights.parent import Parent
from actor.weights.puller import WeightPuller
from dcpo_async.errors import CanaryError, NoRoomError, WeightsError
from dcpo_async.weights.manifest import Manifest

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
MAX_WITHOUT_ROOM = 4
"""Other engines of the machine may let go of a version meanwhile; beyond that it does not fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsPlan:
    """Where the versions of a machine lie, and whom it asks for them.

    Attributes:
        folder_of: the cache folder of a run.
        connect_to_relay: opens channels to relays; None where the weight server alone is asked.
        ask: a relay to ask in place of the one that the coordinator names; empty for that one.
        in_place: versions of a learner on this machine are used where they are.
    """

    folder_of: Callable[[str], Path] = default_cache_folder
    connect_to_relay: Connect | None = None
    ask: str = ""
    in_place: bool = True


class WeightsFollower:
    """Keeps an engine at the newest version of the run that a link has joined.

    Args:
        link: its session is told what the engine has adopted, and has no room for leases before the first version.
        on_ready: called once the engine holds its first version.
        plan: where versions come from.
    """

    def __init__(self, link: LearnerLink, on_ready: Callable[[], None], plan: WeightsPlan) -> None:
        self._link, self._on_ready, self._plan = link, on_ready, plan
        self._heard = asyncio.Event()
        self._adopted = asyncio.Condition()

    def hear(self) -> None:
        """There is a newer version than before."""
        self._heard.set()

    async def reach(self, engine: Engine, weights_version: int) -> None:
        """Wait until the engine's next token is sampled from at least this version."""
        async with self._adopted:
            await self._adopted.wait_for(lambda: engine.weights_version >= weights_version)

    async def follow(self, engine: Engine, has_weights: Callable[[], None]) -> None:
        """Adopt the newest version whenever a newer one is heard of; the first one starts the engine.

        Args:
            has_weights: called once the engine holds its first version.

        Raises:
            EngineError, WeightsError: the engine cannot go on.
            NoRoomError: again and again there was no room for a version.
        """
        num_without_room = 0
        with opened_puller(self._link, self._plan) as puller:
            while True:
                await self._heard.wait()
                self._heard.clear()
                began = time.monotonic()
                try:
                    folder, manifest = await puller.fetch()
                except WeightsError as error:
                    num_without_room = num_without_room + 1 if isinstance(error, NoRoomError) else 0
                    if num_without_room > MAX_WITHOUT_ROOM:
                        raise
                    log.warning("%s; the fetch is tried again in %.0f s", error, RETRY_SECONDS)
                    await asyncio.sleep(RETRY_SECONDS)
                    self._heard.set()
                    continue
                if puller.is_in_place:
                    # Nothing is in the cache that the relay could hand on.
                    self._link.session.relay = ""
                fetched, is_first = time.monotonic() - began, engine.weights_version == 0
                if (pause := await self._adopt(engine, folder, manifest)) is not None:
                    self._link.session.update = fetched, pause, time.monotonic()
                if is_first:
                    has_weights()
                await asyncio.to_thread(puller.prune, {manifest.weights_version})

    async def _adopt(self, engine: Engine, folder: Path, manifest: Manifest) -> float | None:
        """Bring the engine to a version that lies whole in a folder, and let waiting leases go on.

        Returns the seconds for which it stood still; None where it had the version.
        """
        version, session, difference, pause = manifest.weights_version, self._link.session, None, 0.0
        try:
            if engine.weights_version == 0:
                difference = await engine.start(folder, version, manifest.canary)
                log.info("engine %s is ready with weights version %d", engine.name, version)
                self._on_ready()
            elif version > engine.weights_version:
                timing = await engine.adopt(folder, version, manifest.canary)
                difference, pause = timing.canary_difference, timing.pause_seconds
                session.canary_refusals += timing.was_refused
                log.info("adopted weights version %d: %s", version, _told(timing))
            else:
                return None
        except CanaryError:
            session.canary_refusals += 1
            raise
        session.adopted(version, difference)
        async with self._adopted:
            self._adopted.notify_all()
        return pause


def _told(timing: UpdateTiming) -> str:
    stages = ", ".join(f"{stage} {seconds:.3f}" for stage, seconds in timing.stage_seconds.items())
    canary = "no canary" if timing.canary_difference is None else f"{timing.canary_difference:.2g} nats off its canary"
    return (
        f"paused for {timing.pause_seconds:.3f} s ({stages}) with {timing.responses_in_flight} responses in flight, "
        f"{canary}"
    )


@contextmanager
def opened_puller(link: LearnerLink, plan: WeightsPlan | None = None) -> Iterator[WeightPuller]:
    """Fetches the weights of the run that a link has joined; what it holds is let go at the end."""
    run_id, peer, plan = link.session.run_id, f"the weight server at {link.weights_address}", plan or WeightsPlan()
    cache, parent = plan.folder_of(run_id), _parent(link, plan)
    channel = link.connect_to_weights()
    puller = WeightPuller(
        channel, cache, run_id, link.welcome.chunk_bytes, peer=peer, in_place=plan.in_place, parent=parent
    )
    try:
        yield puller
    finally:
        puller.close()
        # Shared memory outlives its processes: the last actor of a run leaves no weights in it.
        puller.prune(())
        channel.close()


def _parent(link: LearnerLink, plan: WeightsPlan) -> Parent | None:
    """The relay to ask, if any may be; one that fails is reported with the next heartbeat."""
    session, connect = link.session, plan.connect_to_relay
    if connect is None:
        return None
    return Parent(connect, session.run_id, ask=lambda: plan.ask or session.ask, lost=session.lose_relay)
