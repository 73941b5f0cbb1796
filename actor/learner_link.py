"""A session with a learner over a channel: sends what is due, yields what happens."""

import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Literal

from dcpo_async import __version__
from dcpo_async.errors import PeerLostError, ProtocolError, RefusedError, VersionMismatchError
from dcpo_async.protocol.events import Complaint, Event, LetGo
from dcpo_async.protocol.messages import Hello, Welcome
from dcpo_async.protocol.session import ActorSession
from dcpo_async.transport.interfaces import Dealer

log = logging.getLogger(__name__)

Connect = Callable[[str], Dealer]
"""Opens the connecting end of a channel to an address."""

POLL_SECONDS = 0.05
REJOIN_SECONDS = 3600.0
COMPLAINT_SECONDS = 60.0


class LearnerLink:
    """Joins a learner, and joins it again when it has been away.

    Args:
        connect: opens channels, over sockets or in memory.
        address: of the coordinator.
        engine: what the learner's log calls the engine.
        role: an evaluator follows the weights and takes no leases.
        join_seconds: how long a first welcome may take.
        relay: where this machine hands on its weights; empty for nowhere.

    Attributes:
        session: what is owed to the coordinator.
        address: as given.
    """

    def __init__(
        self,
        connect: Connect,
        address: str,
        *,
        engine: str,
        role: Literal["actor", "evaluator"] = "actor",
        join_seconds: float = 300.0,
        relay: str = "",
        gpus: int = 0,
    ) -> None:
        host = socket.gethostname()
        self._connect, self.address = connect, address
        self._channel = connect(address)
        self.session = ActorSession(
            Hello(
                session_id=secrets.token_hex(16),
                name=f"{host}-{os.getpid()}-{secrets.token_hex(3)}",
                host=host,
                engine=engine,
                role=role,
                relay=relay,
                gpus=gpus,
                release=__version__,
            ),
            address,
            time.monotonic(),
            join_timeout_seconds=join_seconds,
            rejoin_timeout_seconds=REJOIN_SECONDS,
        )
        self._complain_at = 0.0

    @property
    def welcome(self) -> Welcome:
        """The run's settings; only after the session has joined."""
        assert self.session.welcome is not None
        return self.session.welcome

    @property
    def weights_address(self) -> str:
        """Of the weight server, on the coordinator's host; only after the session has joined."""
        return f"{self.address.rpartition(':')[0]}:{self.welcome.weights_port}"

    def connect_to_weights(self) -> Dealer:
        """A channel to the weight server, for the caller to close."""
        return self._connect(self.weights_address)

    async def events(self) -> AsyncIterator[Event]:
        """What happens, until the session has ended; work that others do meanwhile is sent as it falls due.

        Raises:
            UnreachableError: no learner answered in time.
            RefusedError: the learner speaks another version of the protocol.
        """
        while not self.session.ended:
            await self.send_due()
            for event in await self._news():
                if isinstance(event, Complaint):
                    log.warning("the learner could not take a message: %s", event.detail)
                elif isinstance(event, LetGo):
                    log.info("drained (%s): %d leases are finished first", event.why, event.num_working)
                else:
                    yield event

    async def send_due(self) -> None:
        """Send what is due; where nobody takes it the rest would wait in vain too, and all of it falls due again."""
        try:
            for envelope in self.session.messages_due(time.monotonic()):
                await self._channel.send(envelope)
        except PeerLostError as error:
            if time.monotonic() >= self._complain_at:
                self._complain_at = time.monotonic() + COMPLAINT_SECONDS
                log.warning("%s; it is sent again", error)

    def close(self) -> None:
        """Let go of the coordinator."""
        self._channel.close()

    async def _news(self) -> list[Event]:
        try:
            wait = min(self.session.seconds_until_due(time.monotonic()), POLL_SECONDS)
            envelope = await self._channel.receive(wait)
            return self.session.on_envelope(envelope, time.monotonic()) if envelope else []
        except VersionMismatchError as error:
            raise RefusedError(f"the learner at {self.address}: {error}") from None
        except ProtocolError as error:
            log.warning("a message of the learner was dropped: %s", error)
            return []
