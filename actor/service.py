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
from actor.settings_change import needs_new_start
from actor.tasks import Tasks
from actor.weights_follower import WeightsFollower, attested
from dcpo_async import errors
from dcpo_async.grading import Grading, graded, submissions
from dcpo_async.protocol import events
from dcpo_async.protocol.conversion import made_by, sampling_of
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
        self._made_for: Welcome | None = None
        self._tasks = Tasks(self._fail)
        self._failure: errors.DcpoError | None = None

    async def run(self) -> None:
        """Serve until the learner ends the run, a drain is complete, or something fails for good.

        Raises:
            UnreachableError: no learner answered in time.
            RefusedError: the learner wants nothing to do with this actor.
            EngineError, WeightsError: generation cannot go on; the leases have been given back.
            UnsoundError, OutdatedError: the learner refuses what this engine makes, or asks for another engine.
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
            case events.Joined():
                self._join(event.welcome)
            case events.NewVersion():
                self._weights.hear()
            case events.LeaseGranted():
                self._tasks.start(self._answer(event.lease, event.welcome), name_of(event.lease))
            case events.LeaseRevoked():
                log.info("lease %d is given up: %s", event.name.position, event.detail)
                self._tasks.give_up(event.name)
            case events.GroupAcknowledged() if event.ack.outcome != "accepted":
                log.warning("group %d: %s %s", event.ack.position, event.ack.outcome, event.ack.detail)
            case events.Refused():
                self._failure = event.error
            case events.Paused() | events.Dismissed():
                log.info("the learner takes no more groups%s: %s", event.until, event.detail)

    async def _work(self, welcome: Welcome) -> None:
        self._grading = self._make_grading(welcome)
        # In a thread: importing vLLM takes so long that the learner would take the silence for the end.
        engine = await asyncio.to_thread(self._make_engine, welcome)
        self._places = Places(engine, self.session, welcome)
        self._tasks.start(watch(engine, self.session, self._weights, welcome.actor.engine_stall_seconds))
        await self._weights.follow(engine, self._places.open)

    def _join(self, welcome: Welcome) -> None:
        """Begin by these settings; later ones hold from the next lease on, or need another engine."""
        if self._made_for is None:
            self._made_for = welcome
            self._tasks.start(self._work(welcome))
        elif changed := needs_new_start(self._made_for, welcome):
            is_outdated = made_by(self._made_for) != made_by(welcome)
            self._failure = errors.OutdatedError(f"the learner has other settings now ({'; '.join(changed)})")
            self.session.drain(time.monotonic(), 0.0 if is_outdated else DRAIN_SECONDS, str(self._failure))

    async def _answer(self, lease: Lease, welcome: Welcome) -> None:
        """Generate, grade and hand over one group, by the settings under which it was leased."""
        places, grading = self._places, self._grading
        assert places is not None
        assert grading is not None
        began = time.monotonic()
        try:
            await self._weights.reach(places.engine, lease)
            reached, sampling = time.monotonic(), sampling_of(welcome, lease)
            responses = await places.engine.generate(lease, sampling, lambda n: places.ended(lease, n))
            attested(lease, responses)
        except (errors.PromptError, errors.WeightsError) as error:
            self.session.fail(lease, str(error), is_prompts_fault=isinstance(error, errors.PromptError))
            return
        generated = time.monotonic()
        verdicts = await grading.grade_all(submissions(lease, responses))
        group, now = graded(lease, responses, verdicts, welcome.grading.format_penalty), time.monotonic()
        seconds = reached - began, generated - reached, now - generated
        self.session.finish(replace(group, seconds=seconds, made_by=made_by(welcome)), now)

    def _fail(self, error: errors.DcpoError) -> None:
        """A part that failed ends the process: its leases go back at once, and the launcher starts it anew."""
        if self.session.ended:
            return
        self._failure = self._failure or error
        log.error("%s; %d leases are given back", error, self.session.num_working)
        is_engine = isinstance(error, errors.EngineError) and not isinstance(error, errors.CanaryError)
        self.session.drain(time.monotonic(), 0.0, str(error), has_failed=is_engine)

    async def _close(self) -> None:
        await self._tasks.close()
        if self._places is not None:
            await self._places.engine.close()
        if self._grading is not None:
            self._grading.close()
        self.link.close()
