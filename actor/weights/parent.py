"""The relay that a machine asks for stretches before it asks the origin."""

import logging
import time
from collections.abc import Callable

from actor.weights.server_link import ServerLink
from actor.weights.silence import Silence
from dcpo_async.errors import ConfigError, DcpoError, NotHereError
from dcpo_async.transport.interfaces import Dealer

log = logging.getLogger(__name__)

SILENCE_SECONDS = 5.0
"""A relay tells whoever waits that it is well every second; one that is silent for longer is left."""
SENDS = 2
PATIENCE = 6
"""Times the silence: how long a relay that says it is well may send no stretch."""
SHUNNED_SECONDS = 60.0
"""For so long a relay that failed is not asked again, unless the coordinator has named another one meanwhile."""


class Parent:
    """Whom to ask, and what to think of it.

    Args:
        connect: opens a channel to a relay's address.
        ask: the relay to ask as things stand, empty for none.
        lost: told the address of a relay that was silent, or sent what it should not.
        silence_seconds: of a relay, that is borne.
    """

    def __init__(
        self,
        connect: Callable[[str], Dealer],
        run_id: str,
        ask: Callable[[], str],
        lost: Callable[[str], None] = lambda relay: None,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        self._connect, self._run_id, self._ask, self._lost = connect, run_id, ask, lost
        self._silence_seconds = silence_seconds
        self._relay, self._shunned_until = "", 0.0
        self._channel: Dealer | None = None
        self._link: ServerLink | None = None
        self._bytes_received = 0

    @property
    def bytes_received(self) -> int:
        """From all relays so far."""
        return self._bytes_received + (self._link.bytes_received if self._link is not None else 0)

    def link(self) -> ServerLink | None:
        """The talk with the relay to ask, None where the origin is to be asked."""
        relay = self._ask()
        if relay != self._relay:
            self.close()
            self._relay, self._shunned_until = relay, 0.0
        if not relay or time.monotonic() < self._shunned_until:
            return None
        if self._link is None:
            try:
                self._channel = self._connect(relay)
            except ConfigError as error:
                log.warning("the relay %s cannot be asked: %s", relay, error)
                self.failed(error)
                return None
            self._link = ServerLink(
                self._channel, self._run_id, self._silence_seconds, f"the relay at {relay}", sends=SENDS
            )
        return self._link

    def patience(self) -> Silence:
        """A bound on how long no stretch may come from now on."""
        return Silence(PATIENCE * self._silence_seconds)

    def failed(self, error: DcpoError) -> None:
        """The relay did not bring what it was asked for; one that has it not is no worse for that."""
        self.close()
        if not isinstance(error, NotHereError):
            self._shunned_until = time.monotonic() + SHUNNED_SECONDS
            self._lost(self._relay)

    def close(self) -> None:
        """Let go of the relay."""
        if self._link is not None:
            self._bytes_received += self._link.bytes_received
        if self._channel is not None:
            self._channel.close()
        self._channel = self._link = None
