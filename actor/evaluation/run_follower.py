"""Follows the weights of a running learner, without leases: a client that costs the training nothing."""

import asyncio
import contextlib
import logging
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from actor.learner_link import LearnerLink
from actor.weights.puller import WeightPuller
from actor.weights_follower import Retry, opened_puller
from dcpo_async.errors import RefusedError, WeightsError
from dcpo_async.protocol.events import Dismissed, Event, Joined, NewVersion, Refused
from dcpo_async.protocol.messages import Welcome
from dcpo_async.protocol.transitions import ActorState
from dcpo_async.weights.manifest import Manifest

log = logging.getLogger(__name__)


class RunFollower:
    """Joins a learner as an evaluator and fetches its weights when asked to.

    Args:
        link: to the learner, in the role of an evaluator.
    """

    def __init__(self, link: LearnerLink) -> None:
        self.link, self.session = link, link.session
        self._joined = asyncio.Event()
        self._has_changed = asyncio.Event()
        self._serving = asyncio.create_task(self._serve())
        self._serving.add_done_callback(lambda _: self._has_changed.set())
        self._opened = contextlib.ExitStack()
        self._puller: WeightPuller | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Say bye, and let go of the weights."""
        self._serving.cancel()
        await asyncio.gather(self._serving, return_exceptions=True)
        self.session.drain(time.monotonic(), 0.0, "the evaluation is over")
        await self.link.send_due()
        self._opened.close()
        self.link.close()

    async def joined(self) -> Welcome:
        """What the learner says of the run.

        Raises:
            UnreachableError: no learner answered in time.
            RefusedError: the learner wants nothing to do with this evaluator.
        """
        joining = asyncio.create_task(self._joined.wait())
        try:
            await asyncio.wait((joining, self._serving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            joining.cancel()
        if self._joined.is_set():
            return self.link.welcome
        self._serving.result()
        raise RefusedError(
            f"the run of the learner at {self.link.address} is over; name its folder export/ as the model"
        )

    async def next_weights(self, from_step: int) -> tuple[Path, Manifest] | None:
        """Wait until the newest published version has this optimizer step or a later one; fetch and hold it.

        The version that was held before is let go. Returns the version's folder and manifest, None at the run's end.
        """
        retry = Retry()
        while True:
            await self._has_changed.wait()
            self._has_changed.clear()
            if self._serving.done():
                self._serving.result()
                return None
            await self.joined()
            try:
                if self._puller is None:
                    self._puller = self._opened.enter_context(opened_puller(self.link))
                manifest = await self._puller.newest()
                if manifest.step < from_step:
                    continue
                folder, manifest = await self._puller.fetch(manifest.weights_version)
            except WeightsError as error:
                is_away = self.link.session.state is ActorState.REJOINING
                seconds = retry.seconds_after(error, is_away=is_away)
                log.warning("%s; it is tried again in %.0f s", error, seconds)
                await asyncio.sleep(seconds)
                self._has_changed.set()
                continue
            await asyncio.to_thread(self._puller.prune, {manifest.weights_version})
            return folder, manifest

    async def _serve(self) -> None:
        async for event in self.link.events():
            self._on_event(event)

    def _on_event(self, event: Event) -> None:
        match event:
            case Joined():
                self._joined.set()
            case NewVersion():
                self._has_changed.set()
            case Refused():
                raise RefusedError(event.reject.detail)
            case Dismissed():
                log.info("the run is over: %s", event.detail)
