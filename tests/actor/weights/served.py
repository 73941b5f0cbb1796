"""A weight store that is served over a channel, and what a test asks of it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch

from actor.weights.puller import WeightPuller
from dcpo_async.protocol.messages import Envelope
from dcpo_async.protocol.weight_messages import ChunkMessage, ChunkWant
from dcpo_async.records import STRETCH_BYTES
from dcpo_async.transport.admission import Admission
from dcpo_async.transport.interfaces import Dealer, Router
from dcpo_async.weight_serving.service import serve
from dcpo_async.weights.manifest import Manifest
from dcpo_async.weights.store import write_snapshot

CHUNK_BYTES = STRETCH_BYTES
NUM_STRETCHES = 11  # of the weights: 10 and a half, and a header
NUM_CHUNKS = NUM_STRETCHES + 1


def publish(store: Path, version: int) -> Manifest:
    skeleton = store.parent / "skeleton"
    skeleton.mkdir(exist_ok=True)
    (skeleton / "config.json").write_text('{"model": "tiny"}')
    (skeleton / "merges.txt").write_text("")
    return write_snapshot(
        store,
        weights_version=version,
        run_id="run",
        incarnation=1,
        step=version,
        tensors={"w": torch.arange(10.5 * STRETCH_BYTES // 4) + version},
        skeleton_folder=skeleton,
    )


@asynccontextmanager
async def at_work(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Something that goes on until the end of the block."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def served(router: Router, store: Path, admission: Admission | None = None) -> AsyncIterator[None]:
    try:
        async with at_work(serve(router, store, "run", admission)):
            yield
    finally:
        router.close()


class Watched:
    """A dealer that counts what it asks for, and shows each answer to a function first."""

    def __init__(self, inner: Dealer) -> None:
        self.inner = inner
        self.asked: list[ChunkWant] = []
        self.outstanding = self.most_outstanding = 0
        self.on_chunk: Callable[[Envelope], Awaitable[Envelope]] | None = None

    async def send(self, envelope: Envelope) -> None:
        await self.inner.send(envelope)
        if isinstance(envelope.message, ChunkWant):
            self.asked.append(envelope.message)
            self.outstanding += 1
            self.most_outstanding = max(self.most_outstanding, self.outstanding)

    async def receive(self, timeout_seconds: float) -> Envelope | None:
        envelope = await self.inner.receive(timeout_seconds)
        if envelope is not None and isinstance(envelope.message, ChunkMessage):
            self.outstanding -= 1
            if self.on_chunk is not None:
                return await self.on_chunk(envelope)
        return envelope

    def close(self) -> None:
        self.inner.close()


def puller(
    channel: Dealer, cache: Path, timeout_seconds: float = 5.0, credit: int = 8, *, in_place: bool = False
) -> WeightPuller:
    """A puller that downloads, although the store is on this machine."""
    peer = "tcp://learner:5558"
    return WeightPuller(channel, cache, "run", CHUNK_BYTES, credit, timeout_seconds, peer=peer, in_place=in_place)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
