"""Relays that tests ask: real ones over a machine's cache, and such as send what they should not."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np

from actor.weights.parent import Parent
from actor.weights.puller import WeightPuller
from dcpo_async.protocol.messages import Envelope
from dcpo_async.protocol.weight_messages import ChunkMessage, ChunkWant
from dcpo_async.transport.interfaces import Dealer, Router
from dcpo_async.weight_serving.relaying import Relay
from tests.actor.weights.served import CHUNK_BYTES, at_work

RELAY = "tcp://relay:5560"


@asynccontextmanager
async def relaying(router: Router, cache: Path) -> AsyncIterator[None]:
    """Hand on the versions of a cache."""
    try:
        async with at_work(Relay(router, lambda run_id: cache if run_id == "run" else None).serve()):
            yield
    finally:
        router.close()


@asynccontextmanager
async def answering(router: Router, answer: Callable[[ChunkWant], Envelope | None]) -> AsyncIterator[None]:
    """A relay that says to each request what a test has it say, or nothing."""

    async def serve() -> None:
        while True:
            for received in await router.receive(1.0):
                assert isinstance(received.envelope, Envelope)
                assert isinstance(received.envelope.message, ChunkWant)
                said = answer(received.envelope.message)
                if said is not None:
                    await router.send(received.peer, said)

    async with at_work(serve()):
        yield


def chunk(want: ChunkWant, data: bytes = b"", *, later: bool = False, error: str = "") -> Envelope:
    message = ChunkMessage(
        weights_version=want.weights_version, file=want.file, offset=want.offset, later=later, error=error
    )
    return Envelope(message, {"data": np.frombuffer(data, np.uint8)}, "run")


class Child:
    """A machine with a parent: its puller, and what it has to say of the parent."""

    def __init__(
        self, origin: Dealer, parent: Dealer | Callable[[str], Dealer], cache: Path, silence_seconds: float = 0.5
    ) -> None:
        self.ask, self.lost = RELAY, list[str]()
        connect = parent if callable(parent) else lambda relay: parent
        self.parent = Parent(connect, "run", lambda: self.ask, self.lost.append, silence_seconds)
        self.puller = WeightPuller(
            origin, cache, "run", CHUNK_BYTES, 8, 5.0, peer="the origin", in_place=False, parent=self.parent
        )
