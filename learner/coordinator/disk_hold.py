"""A run whose disk is nearly full is held: nothing is taken in, trained or written, and nobody is given up over it."""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Sequence

from dcpo_async.config import RunConfig
from dcpo_async.errors import PeerLostError, ProtocolError
from dcpo_async.protocol.messages import Bye, Envelope, LeaseFailed, Message, Reject
from dcpo_async.protocol.trainer_messages import Published, ShardWant, VersionWant
from dcpo_async.run_folder import lacking_room
from dcpo_async.transport.interfaces import Received, Router
from learner.coordinator.mail import Mail

log = logging.getLogger(__name__)

GLANCE_SECONDS, LOOK_SECONDS = 0.05, 1.0
"""Between two looks at a disk that has room, and at one that lacks it."""
SETTLING_SECONDS = 10.0
"""After a hold silence does not count for so long at least: who was told to wait says hello every 5 s."""
ASKED_AGAIN = (ShardWant, VersionWant, Published)
"""What ranks and the publisher say until they are answered; the rest they say once."""


class DiskHold:
    """Receives what may be taken in; while the disk lacks room that is nothing, however long it takes.

    Both sides are received from all the same, so that what is answered on the way, such as the beats of other machines,
    still is. Actors hear that the learner is stopping: they keep what they have, and say hello until they are welcome.
    What either side says once is kept.

    Args:
        config: of the run.
        ranks: reaches the ranks; whom any other router reaches is an actor.
        mail: knows what goes with everything that is said.
    """

    def __init__(self, config: RunConfig, ranks: Router, mail: Mail) -> None:
        self._folder, self._silence_seconds, self._ranks = config.folder, config.network.silence_seconds, ranks
        detail = "the learner's disk is nearly full: keep what is there, it goes on once there is room"
        self._answer = Envelope(Reject(reason="stopping", detail=detail), {}, mail.run_id, mail.incarnation)
        self._is_allowed, self._since, self._ended_at = True, 0.0, -math.inf
        self._is_on, self._looked_at = False, -LOOK_SECONDS

    async def receive(self, router: Router, timeout_seconds: float) -> list[Received]:
        """What peers have sent, once there is room for what follows from it; empty where nothing came in time."""
        received, kept = await router.receive(timeout_seconds), list[Received]()
        while self.is_on():
            kept += await self._put_off(router, received)
            received = await router.receive(GLANCE_SECONDS)
        return kept + received

    def is_on(self) -> bool:
        """Whether nothing may be written, by a look at the disk where the last one was some time ago."""
        now = time.monotonic()
        # On a file system of the network a look takes as long as a message.
        if now - self._looked_at >= (LOOK_SECONDS if self._is_on else GLANCE_SECONDS):
            self._looked_at = now
            self._turn(lacking_room(self._folder) if self._is_allowed else 0.0, now)
        return self._is_on

    async def until_over(self) -> None:
        """Return once the run is not held."""
        while self.is_on():  # noqa: ASYNC110 - a disk
            await asyncio.sleep(LOOK_SECONDS)

    def is_settled(self) -> bool:
        """Whether a peer's silence is its own: not while the run is held, nor before all were welcome again."""
        return not self.is_on() and time.monotonic() - self._ended_at >= max(self._silence_seconds, SETTLING_SECONDS)

    def release(self) -> None:
        """Hold the run no more: it comes to its end, with what room there is."""
        self._is_allowed = False
        self._turn(0.0, time.monotonic())

    def _turn(self, lacks: float, now: float) -> None:
        if lacks and not self._is_on:
            self._since = now
            form = "%s: its disk lacks %.1f MB of room; the run waits, and goes on by itself once there is more"
            log.error(form, self._folder, lacks / 1e6)
        elif self._is_on and not lacks:
            self._ended_at = now
            log.warning("%s: the run has waited %.0f s for room on its disk", self._folder, now - self._since)
        self._is_on = lacks > 0

    async def _put_off(self, router: Router, received: Sequence[Received]) -> list[Received]:
        """What nobody says again: facts of ranks, and why actors give a lease back or leave; actors are answered."""
        if router is self._ranks:
            return [one for one in received if not _is_a(one.envelope, ASKED_AGAIN)]
        for peer in {one.peer for one in received if isinstance(one.envelope, Envelope)}:
            with contextlib.suppress(PeerLostError):
                await router.send(peer, self._answer)
        return [one for one in received if _is_a(one.envelope, (Bye, LeaseFailed))]


def _is_a(envelope: Envelope | ProtocolError, kinds: tuple[type[Message], ...]) -> bool:
    return isinstance(envelope, Envelope) and isinstance(envelope.message, kinds)
