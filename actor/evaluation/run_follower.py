"""Follows the weights of a running learner, without leases: a client that costs the training nothing."""

import asyncio
import contextlib
import logging
import os
import socket
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

from actor.weights.puller import WeightPuller, default_cache_folder
from dcpo_async.errors import PeerLostError, ProtocolError, RefusedError, VersionMismatchError, WeightsError
from dcpo_async.protocol.messages import Envelope, Hello, Welcome
from dcpo_async.protocol.session import ActorSession, Dismissed, Event, Joined, NewVersion, Refused
from dcpo_async.transport.security import CurveClient
from dcpo_async.transport.zmq_channel import DealerChannel
from dcpo_async.weights.manifest import Manifest

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
REJOIN_SECONDS = 3600.0
RETRY_SECONDS = 2.0
MAX_MESSAGE_BYTES = 1 << 30


class RunFollower:
    """Joins a learner as an evaluator and fetches its weights when asked to.

    Args:
        learner: address of the coordinator.
        keys: CURVE keys, None on loopback or with `insecure`.
        insecure: reach a learner off loopback without keys.
        engine: what the learner's log calls the evaluator's engine.
        join_seconds: how long a first welcome may take.
    """

    def __init__(
        self, learner: str, keys: CurveClient | None, *, insecure: bool, engine: str, join_seconds: float
    ) -> None:
        identity = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        hello = Hello(session_id=identity, host=socket.gethostname(), engine=engine, role="evaluator")
        self._learner, self._keys, self._insecure, self._identity = learner, keys, insecure, identity.encode()
        self._channel = self._connect(learner)
        self.session = ActorSession(
            hello,
            learner,
            time.monotonic(),
            join_timeout_seconds=join_seconds,
            rejoin_timeout_seconds=REJOIN_SECONDS,
        )
        self._welcome: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()
        self._has_changed = asyncio.Event()
        self._serving = asyncio.create_task(self._serve())
        self._serving.add_done_callback(lambda _: self._has_changed.set())
        self._weights: tuple[DealerChannel, WeightPuller] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Say bye, and let go of the weights."""
        self._serving.cancel()
        await asyncio.gather(self._serving, return_exceptions=True)
        self.session.drain(time.monotonic(), 0.0, "the evaluation is over")
        await self._send_what_is_due()
        if self._weights is not None:
            channel, puller = self._weights
            puller.close()
            puller.prune(())
            channel.close()
        self._channel.close()

    async def joined(self) -> Welcome:
        """What the learner says of the run.

        Raises:
            UnreachableError: no learner answered in time.
            RefusedError: the learner wants nothing to do with this evaluator.
        """
        await asyncio.wait((self._welcome, self._serving), return_when=asyncio.FIRST_COMPLETED)
        if self._welcome.done():
            return self._welcome.result()
        self._serving.result()
        raise RefusedError(f"the run of the learner at {self._learner} is over; name its folder export/ as the model")

    async def next_weights(self, from_step: int) -> tuple[Path, Manifest] | None:
        """Wait until the newest published version has this optimizer step or a later one; fetch and hold it.

        The version that was held before is let go. Returns the version's folder and manifest, None at the run's end.
        """
        while True:
            await self._has_changed.wait()
            self._has_changed.clear()
            if self._serving.done():
                self._serving.result()
                return None
            try:
                puller = await self._puller()
                manifest = await puller.newest()
                if manifest.step < from_step:
                    continue
                folder, manifest = await puller.fetch(manifest.weights_version)
            except WeightsError as error:
                log.warning("%s; it is tried again in %.0f s", error, RETRY_SECONDS)
                await asyncio.sleep(RETRY_SECONDS)
                self._has_changed.set()
                continue
            await asyncio.to_thread(puller.prune, {manifest.weights_version})
            return folder, manifest

    # ---- the session

    async def _serve(self) -> None:
        while not self.session.ended:
            await self._send_what_is_due()
            for event in await self._events():
                self._on_event(event)

    async def _send_what_is_due(self) -> None:
        # What does not leave falls due again.
        with contextlib.suppress(PeerLostError):
            for envelope in self.session.messages_due(time.monotonic()):
                await self._channel.send(envelope)

    async def _events(self) -> list[Event]:
        wait = min(self.session.seconds_until_due(time.monotonic()), POLL_SECONDS)
        try:
            envelope: Envelope | None = await self._channel.receive(wait)
            return self.session.on_envelope(envelope, time.monotonic()) if envelope else []
        except VersionMismatchError as error:
            raise RefusedError(f"the learner at {self._learner}: {error}") from None
        except ProtocolError as error:
            log.warning("a message of the learner was dropped: %s", error)
            return []

    def _on_event(self, event: Event) -> None:
        match event:
            case Joined() if not self._welcome.done():
                self._welcome.set_result(event.welcome)
            case NewVersion():
                self._has_changed.set()
            case Refused():
                raise RefusedError(event.reject.detail)
            case Dismissed():
                log.info("the run is over: %s", event.detail)

    # ---- weights

    async def _puller(self) -> WeightPuller:
        if self._weights is None:
            welcome, run_id = await self.joined(), self.session.run_id
            address = f"{self._learner.rpartition(':')[0]}:{welcome.weights_port}"
            channel = self._connect(address)
            peer = f"the weight server at {address}"
            cache = default_cache_folder(run_id)
            self._weights = channel, WeightPuller(channel, cache, run_id, welcome.chunk_bytes, peer=peer)
        return self._weights[1]

    def _connect(self, address: str) -> DealerChannel:
        return DealerChannel(address, self._identity, MAX_MESSAGE_BYTES, self._keys, insecure=self._insecure)
