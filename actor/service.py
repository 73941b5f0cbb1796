"""One engine at work for a learner: lease, generate, grade, send. MAIN LOOP."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from actor.capacity import Places
from actor.engine.interface import Engine
from actor.learner_link import LearnerLink
from actor.progress import watch
from actor.tasks import Tasks
from actor.weights_follower import WeightsFollower
from dcpo_async.errors import DcpoError, PromptError, RefusedError
from dcpo_async.grading import Grading, graded
from dcpo_async.protocol import events
from dcpo_async.protocol.conversion import sampling_of
from dcpo_async.protocol.in_work import name_of
from dcpo_async.protocol.messages import Welcome
from dcpo_async.records import Lease

log = logging.getLogger("actor")

DRAIN_SECONDS = 60.0


class ActorService:
    """Keeps an engine fed with leases and the coordinator with groups.

    Args:
        link: to the learner.
        make_engine, make_grading: what the run asks for in its welcome; an engine takes long to make.
        weights: keeps the engine at the newest version.
    """

    def __init__(
        self,
        link: LearnerLink,
        make_engine: Callable[[Welcome], Engine],
        make_grading: Callable[[Welcome], Grading],
        weights: WeightsFollower,
    ) -> None:
        self.link, self.session = link, link.session
        self._make_engine, self._make_grading, self._weights = make_engine, make_grading, weights
        self._grading: Grading | None = None
        self._places: Places | None = None
        self._is_working = False
        self._tasks = Tasks(self._fail)
        self._failure: DcpoError | None = None

    async def run(self) -> None:
        """Serve until the learner ends the run, a drain is complete, or something fails for good.

        Raises:
            UnreachableError: no learner answered in time.
            RefusedError: the learner wants nothing to do with this actor.
            EngineError, WeightsError: generation cannot go on; the leases have been given back.
        """
        try:
            async for event in self.link.events():
                self._on_event(event)
        finally:
            await self._close()
        if self._failure is not None:
            raise self._failure

    def drain(self) -> None:
        """Take no more leases, finish what is held, say bye."""
        log.info("draining: %d leases are finished first", self.session.num_working)
        self.session.drain(time.monotonic(), DRAIN_SECONDS, "asked to end")

    def _on_event(self, event: events.Event) -> None:
        match event:
            case events.Joined() if not self._is_working:
                self._is_working = True
                self._tasks.start(self._work(event.welcome))
            case events.NewVersion():
                self._weights.hear()
            case events.LeaseGranted():
                self._tasks.start(self._answer(event.lease), name_of(event.lease))
            case events.LeaseRevoked():
                log.info("lease %d is given up: %s", event.name.position, event.detail)
                self._tasks.give_up(event.name)
            case events.GroupAcknowledged() if event.ack.outcome != "accepted":
                log.warning("group %d: %s %s", event.ack.position, event.ack.outcome, event.ack.detail)
            case events.Refused():
                self._failure = RefusedError(event.reject.detail)
            case events.Dismissed():
                log.info("the learner takes no more groups: %s", event.detail)

    async def _work(self, welcome: Welcome) -> None:
        self._grading = self._make_grading(welcome)
        # In a thread: importing vLLM takes so long that the learner would take the silence for the end.
        engine = await asyncio.to_thread(self._make_engine, welcome)
        self._places = Places(engine, self.session, welcome)
        self._tasks.start(watch(engine, self.session, self._weights, welcome.actor.engine_stall_seconds))
        await self._weights.follow(engine, self._places.open)

    async def _answer(self, lease: Lease) -> None:
        """Generate, grade and hand over one group."""
        places, grading, welcome = self._places, self._grading, self.link.welcome
        assert places is not None
        assert grading is not None
        began = time.monotonic()
        await self._weights.reach(places.engine, lease.min_version)
        reached = time.monotonic()
        try:
            responses = await places.engine.generate(lease, sampling_of(welcome), lambda n: places.ended(lease, n))
        except PromptError as error:
            self.session.fail(lease, str(error), is_prompts_fault=True)
            return
        generated = time.monotonic()
        verdicts = await grading.grade_many([response.text for response in responses], lease.answer)
        group, now = graded(lease, responses, verdicts, welcome.grading.format_penalty), time.monotonic()
        seconds = reached - began, generated - reached, now - generated
        self.session.finish(replace(group, seconds=seconds), now)

    def _fail(self, error: DcpoError) -> None:
        """A part that failed ends the process: its leases go back at once, and the launcher starts it anew."""
        if self.session.ended:
            return
        self._failure = self._failure or error
        log.error("%s; %d leases are given back", error, self.session.num_working)
        self.session.drain(time.monotonic(), 0.0, str(error))

    async def _close(self) -> None:
        await self._tasks.close()
        if self._places is not None:
            await self._places.engine.close()
        if self._grading is not None:
            self._grading.close()
        self.link.close()
