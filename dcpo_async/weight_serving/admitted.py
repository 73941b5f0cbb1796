"""Whom a relay lets in: the actors that the learner admits, asked of its weight server over and over."""

import asyncio
import logging
from collections.abc import Callable

from dcpo_async.errors import DcpoError, PeerLostError, ProtocolError
from dcpo_async.limits import quoted
from dcpo_async.protocol.messages import Envelope, Reject
from dcpo_async.protocol.weight_messages import KeysMessage, KeysWant
from dcpo_async.transport.admission import Admission, KeyHolder
from dcpo_async.transport.interfaces import Dealer

log = logging.getLogger("keys")

FOLLOW_SECONDS = 5.0
"""A key that is revoked is out at the relays so much later, at most."""
ASK_SECONDS = 0.5
GRACE_SECONDS = 2.0
"""For a relay that is so new that it has heard of no learner; and for the learner's answer."""

Place = tuple[str, str]
"""A run's id, and the address of its weight server."""


class AdmittedByLearner(Admission):
    """The actors that a learner admits; as long as it does not answer, those that it admitted last.

    Args:
        place: where to ask, once that is known.
        connect: opens a channel to a weight server, with this machine's own keys.
    """

    def __init__(self, place: Callable[[], Place | None], connect: Callable[[str], Dealer]) -> None:
        super().__init__()
        self._place, self._connect = place, connect
        self._at: Place | None = None
        self._known = ""
        self._channel: Dealer | None = None
        self._clock = asyncio.get_running_loop().time
        self._asked_at = self._clock() - ASK_SECONDS
        self._one_at_a_time = asyncio.Lock()
        self._is_away = False

    async def follow(self) -> None:
        """Ask until this is cancelled."""
        try:
            while True:
                await self.ask()
                await asyncio.sleep(FOLLOW_SECONDS)
        finally:
            self._close()

    async def ask(self) -> None:
        """Ask now, once for all who want to know meanwhile."""
        wanted_at = self._clock()
        async with self._one_at_a_time:
            if self._asked_at > wanted_at:
                return
            await asyncio.sleep(self._asked_at + ASK_SECONDS - self._clock())
            for _ in range(20):
                if (place := self._place()) is not None:
                    break
                await asyncio.sleep(GRACE_SECONDS / 20)
            self._asked_at = self._clock()
            if place is None:
                return
            try:
                await self._ask(place)
            except (DcpoError, TimeoutError) as error:
                if not self._is_away:
                    log.warning("who is admitted cannot be asked of %s: %s", place[1], quoted(error) or "no answer")
                self._is_away = True
                self._close()
            else:
                self._is_away = False

    async def _ask(self, place: Place) -> None:
        if self._channel is None or place != self._at:
            self._close()
            self._channel, self._at = self._connect(place[1]), place
        async with asyncio.timeout(GRACE_SECONDS):
            await self._channel.send(Envelope(KeysWant(digest=self._known), run_id=place[0]))
            while True:
                answer = await self._channel.receive(GRACE_SECONDS)
                if answer is None:
                    raise PeerLostError("no answer")
                if isinstance(answer.message, Reject):
                    raise ProtocolError(answer.message.detail)
                if isinstance(answer.message, KeysMessage):
                    break
        # Without a list, nothing has changed since the one that was named.
        if answer.message.actors is not None:
            self.replace(KeyHolder(name, "actor", key) for name, key in answer.message.actors)
            self._known = answer.message.digest

    def _close(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = None
