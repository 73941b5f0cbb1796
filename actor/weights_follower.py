"""Brings an engine to every newer weights version: fetch, adopt, let waiting leases go on."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from actor.engine.interface import Engine, UpdateTiming
from actor.learner_link import Connect, LearnerLink
from actor.weights.cache import default_cache_folder, sweep_siblings
from actor.weights.parent import Parent
from actor.weights.puller import WeightPuller
from dcpo_async.errors import CanaryError, NoRoomError, UnusableError, WeightsError
from dcpo_async.protocol.transitions import ActorState
from dcpo_async.records import Hold, Lease, Response
from dcpo_async.weights.manifest import Manifest

log = logging.getLogger(__name__)

RETRY_SECONDS, MOST_RETRY_SECONDS = 2.0, 60.0
"""Before a fetch is tried again; twice as long after each one more that fails in a row, up to the second."""
MAX_WITHOUT_ROOM = 4
"""Other engines of the machine may let go of a version meanwhile; beyond that it does not fit."""
MAX_FAILURES = 8
"""Fetches that may fail in a row while the learner answers; while it is away they do not count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsPlan:
    """Where the versions of a machine lie, and whom it asks for them.

    Attributes:
        folder_of: the cache folder of a run.
        connect_to_relay: opens channels to relays; None where the weight server alone is asked.
        ask: a relay to ask in place of the one that the coordinator names; empty for that one.
        in_place: versions of a learner on this machine are used where they are.
        patience_seconds: how long a lease waits here for its version; then others may answer it.
    """

    folder_of: Callable[[str], Path] = default_cache_folder
    connect_to_relay: Connect | None = None
    ask: str = ""
    in_place: bool = True
    patience_seconds: float = 20.0


class Retry:
    """When a fetch that failed is tried again. Pure."""

    def __init__(self) -> None:
        self._num_failures = self._num_without_room = 0

    def seconds_after(self, error: WeightsError, *, is_away: bool) -> float:
        """How long to wait after one more failure in a row; raises it where trying again does not help.

        Args:
            is_away: the learner is, so that nothing can be fetched, whoever asks.
        """
        if isinstance(error, NoRoomError):
            self._num_without_room += 1
            if self._num_without_room > MAX_WITHOUT_ROOM:
                raise error
            return RETRY_SECONDS
        if isinstance(error, UnusableError) or self._num_failures >= MAX_FAILURES:
            raise error
        self._num_failures += not is_away
        return float(min(MOST_RETRY_SECONDS, RETRY_SECONDS * 2 ** max(0, self._num_failures - 1)))


class Staying:
    """Which version an engine fetches next, where it is asked to stay at one for a while. Pure.

    Example: an engine at 3 is asked to stay at 4 for 60 s. It fetches 4; for 60 s it wants none; then the newest. One
    that is at 5 already fetches the newest too: versions only go up.
    """

    def __init__(self) -> None:
        self._version, self._until = 0, 0.0

    def wanted(self, hold: Hold | None, has: int, now: float) -> int | None:
        """The version to fetch, 0 for the newest; None while the engine stays.

        Args:
            hold: what the learner asks for, if anything.
            has: version of the engine, 0 before the first.
            now: monotonic seconds.
        """
        if hold is None or hold.weights_version < has:
            return 0
        if hold.weights_version > has:
            return hold.weights_version
        if hold.weights_version != self._version:
            self._version, self._until = hold.weights_version, now + hold.seconds
        return None if now < self._until else 0

    def seconds_left(self, now: float) -> float:
        """Until the engine that stays goes on of itself."""
        return max(0.0, self._until - now)


class WeightsFollower:
    """Keeps an engine at the newest version of the run that a link has joined.

    Args:
        link: its session is told what the engine has adopted, and has no room for leases before the first version.
        on_ready: called once the engine holds its first version.
        plan: where versions come from.

    Attributes:
        is_updating: the engine starts, or its weights are being exchanged: it generates nothing meanwhile.
    """

    def __init__(self, link: LearnerLink, on_ready: Callable[[], None], plan: WeightsPlan) -> None:
        self._link, self._on_ready, self._plan = link, on_ready, plan
        self.is_updating = False
        self._heard = asyncio.Event()
        self._adopted = asyncio.Condition()
        self._retry, self._staying = Retry(), Staying()
        self._failure = ""

    def hear(self) -> None:
        """There is a newer version than before, or another one to stay at."""
        self._heard.set()

    async def reach(self, engine: Engine, lease: Lease) -> None:
        """Wait until the engine's next token is sampled from a version that the lease may be answered by.

        Raises WeightsError where the version cannot be fetched for now, or takes long: others may answer the lease
        meanwhile, and this engine asks for none before it has a newer version. Also where an evaluation's version is
        not the engine's any more.
        """
        seconds, weights_version = self._plan.patience_seconds, lease.min_version
        try:
            async with asyncio.timeout(seconds), self._adopted:
                await self._adopted.wait_for(lambda: engine.weights_version >= weights_version or bool(self._failure))
        except TimeoutError:
            self._link.session.takes_leases = False
            raise WeightsError(f"no version {weights_version} here after {seconds:g} s") from None
        if engine.weights_version < weights_version:
            raise WeightsError(f"no version {weights_version} here yet: {self._failure}")
        if lease.terms is not None and engine.weights_version != lease.terms.exact_version:
            raise WeightsError(
                f"version {lease.terms.exact_version} is to be measured, {engine.weights_version} is here"
            )

    async def follow(self, engine: Engine, has_weights: Callable[[], None]) -> None:
        """Adopt the newest version whenever a newer one is heard of, or one to stay at; the first starts the engine.

        Args:
            has_weights: called once the engine holds its first version.

        Raises:
            EngineError: the engine cannot go on.
            WeightsError: again and again a version could not be fetched, though the learner is there.
            UnusableError: no version can be kept here, or there was no room for one again and again.
        """
        for left in await asyncio.to_thread(sweep_siblings, self._plan.folder_of(self._link.session.run_id)):
            log.info("removed %s, which nobody uses any more", left)
        with opened_puller(self._link, self._plan) as puller:
            while True:
                wanted = await self._wanted(engine)
                began = time.monotonic()
                try:
                    folder, manifest = await puller.fetch(wanted)
                except WeightsError as error:
                    is_away = self._link.session.state is ActorState.REJOINING
                    seconds = self._retry.seconds_after(error, is_away=is_away)
                    await self._tell(str(error))
                    log.warning("%s; the fetch is tried again in %.0f s", error, seconds)
                    await asyncio.sleep(seconds)
                    self._heard.set()
                    continue
                self._retry = Retry()
                await self._tell("")
                if puller.is_in_place:
                    # Nothing is in the cache that the relay could hand on.
                    self._link.session.relay = ""
                fetched, is_first = time.monotonic() - began, engine.weights_version == 0
                if (pause := await self._adopt(engine, folder, manifest)) is not None:
                    self._link.session.update = fetched, pause, time.monotonic()
                if is_first:
                    has_weights()
                if self._link.session.hold is not None:
                    # The stay ends by itself, should nobody end it.
                    self._heard.set()
                await asyncio.to_thread(puller.prune, {manifest.weights_version})

    async def _wanted(self, engine: Engine) -> int:
        """Wait until another version is to be fetched: its number, or 0 for the newest."""
        await self._heard.wait()
        self._heard.clear()
        while (
            wanted := self._staying.wanted(self._link.session.hold, engine.weights_version, time.monotonic())
        ) is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._heard.wait(), self._staying.seconds_left(time.monotonic()))
            self._heard.clear()
        return wanted

    async def _adopt(self, engine: Engine, folder: Path, manifest: Manifest) -> float | None:
        """Bring the engine to a version that lies whole in a folder, and let waiting leases go on.

        Returns the seconds for which it stood still; None where it had the version.
        """
        version, session, difference, pause = manifest.weights_version, self._link.session, None, 0.0
        self.is_updating = True
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
        finally:
            self.is_updating = False
        session.adopted(version, difference)
        session.takes_leases = True
        async with self._adopted:
            self._adopted.notify_all()
        return pause

    async def _tell(self, failure: str) -> None:
        """Let leases that wait for a version go on, or be given back; there is room for none while it does not come."""
        self._link.session.takes_leases = not failure
        async with self._adopted:
            self._failure = failure
            self._adopted.notify_all()


def attested(lease: Lease, responses: Sequence[Response]) -> None:
    """Raise WeightsError where a lease of an evaluation was not answered by its version alone."""
    found = {segment.weights_version for response in responses for segment in response.segments}
    if lease.terms is not None and found - {lease.terms.exact_version}:
        raise WeightsError(f"version {lease.terms.exact_version} is to be measured, {sorted(found)} have answered")


def _told(timing: UpdateTiming) -> str:
    stages = ", ".join(f"{stage} {seconds:.3f}" for stage, seconds in timing.stage_seconds.items())
    canary = "no canary" if timing.canary_difference is None else f"{timing.canary_difference:.2g} nats off its canary"
    return (
        f"paused for {timing.pause_seconds:.3f} s ({stages}) with {timing.responses_in_flight} responses in flight, "
        f"{canary}"
    )


@contextlib.contextmanager
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
