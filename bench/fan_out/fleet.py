"""Machines with caches, relays and pullers of their own, which fetch one version over links of a given rate."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from actor.weights.parent import Parent
from actor.weights.puller import WeightPuller
from actor.weights.relay import offer
from dcpo_async.demo.services import free_address
from dcpo_async.limits import MAX_MESSAGE_BYTES
from dcpo_async.protocol.messages import Envelope
from dcpo_async.records import STRETCH_BYTES
from dcpo_async.transport.interfaces import Received, Router
from dcpo_async.transport.pacing import PacedRouter
from dcpo_async.transport.zmq_channel import RouterChannel, connecting
from dcpo_async.weight_serving.relaying import Relay
from dcpo_async.weight_serving.service import serve
from dcpo_async.weights.store import verify, write_snapshot
from learner.scheduling.relay_tree import RelayTree

RUN_ID = "bench"
MB = 1e6


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run took.

    Attributes:
        seconds: until each machine had the version, by machine.
        origin_bytes: that the origin sent.
        busy_share: of this machine's processors, by all that ran on them.
        own_share: of this machine's processors, by this benchmark.
    """

    seconds: tuple[float, ...]
    origin_bytes: int
    busy_share: float
    own_share: float


class Counted:
    """A router that counts the bytes of what it sends."""

    def __init__(self, inner: Router) -> None:
        self._inner, self.bytes_sent, self.refusals = inner, 0, inner.refusals

    @property
    def port(self) -> int:
        """TCP port that is listened on."""
        return self._inner.port

    async def receive(self, timeout_seconds: float) -> list[Received]:
        """Everything that waits; empty when nothing came within the timeout."""
        return await self._inner.receive(timeout_seconds)

    async def send(self, peer: bytes, envelope: Envelope) -> None:
        """Send without waiting; raises PeerLostError when the peer is gone or its queue is full."""
        self.bytes_sent += sum(array.nbytes for array in envelope.arrays.values())
        await self._inner.send(peer, envelope)

    def close(self) -> None:
        """Let go of the address and every peer."""
        self._inner.close()


class Fleet:
    """Machines that fetch one version.

    Args:
        store: of the origin; holds one version.
        scratch: for the machines' caches.
        link_mbps: megabytes a second of each link between a parent and a child.
        trouble: by machine, the signal that its relay, a process of its own, gets half-way.
    """

    def __init__(self, store: Path, scratch: Path, link_mbps: float, trouble: dict[int, signal.Signals]) -> None:
        self._store, self._scratch, self._link_mbps, self._trouble = store, scratch, link_mbps, trouble
        self._processes: dict[int, asyncio.subprocess.Process] = {}

    async def fetch(self, num_machines: int, *, by_tree: bool, origin_mbps: float | None = None) -> Outcome:
        """Have all machines fetch at once.

        Args:
            by_tree: by relays; else all from the origin.
            origin_mbps: what the origin sends in all; none where only each link is bounded.
        """
        async with AsyncExitStack() as stack:
            inner = Counted(RouterChannel("tcp://127.0.0.1:0", MAX_MESSAGE_BYTES))
            origin = PacedRouter(inner, (origin_mbps or self._link_mbps) * MB, per_peer=origin_mbps is None)
            await stack.enter_async_context(_running(origin, serve(origin, self._store, RUN_ID)))
            tree = RelayTree()
            caches = [self._scratch / f"cache-{number}" for number in range(num_machines)]
            if by_tree:
                for number, cache in enumerate(caches):
                    tree.join(number, await self._relay(stack, number, cache))
            pullers = [self._puller(stack, number, cache, origin.port, tree) for number, cache in enumerate(caches)]
            return await self._timed(pullers, inner)

    async def _timed(self, pullers: Sequence[WeightPuller], origin: Counted) -> Outcome:
        own, started = _cpu_seconds(), time.monotonic()
        psutil.cpu_percent()

        async def fetched(puller: WeightPuller) -> float:
            folder, manifest = await puller.fetch()
            seconds = time.monotonic() - started
            assert manifest.weights_version == 1
            assert folder.is_dir()
            return seconds

        fetching = [asyncio.create_task(fetched(puller)) for puller in pullers]
        if self._trouble:
            await asyncio.sleep(self._bytes() / (self._link_mbps * MB) / 2)
            for number, what in self._trouble.items():
                self._processes[number].send_signal(what)
        seconds = tuple(await asyncio.gather(*fetching))
        wall, cores = time.monotonic() - started, os.cpu_count() or 1
        busy, own = psutil.cpu_percent() / 100, (_cpu_seconds() - own) / wall / cores
        for puller in pullers:
            folder, _ = await puller.fetch()
            verify(folder)
        return Outcome(seconds, origin.bytes_sent, busy, own)

    async def _relay(self, stack: AsyncExitStack, number: int, cache: Path) -> str:
        """Start a machine's relay; returns its address."""
        if number in self._trouble:
            return await self._relay_process(stack, number, cache)
        router = PacedRouter(RouterChannel("tcp://127.0.0.1:0", MAX_MESSAGE_BYTES), self._link_mbps * MB, per_peer=True)
        await stack.enter_async_context(_running(router, Relay(router, lambda run_id: cache).serve()))
        return f"tcp://127.0.0.1:{router.port}"

    async def _relay_process(self, stack: AsyncExitStack, number: int, cache: Path) -> str:
        """As the launcher starts it; both children share twice a link's rate."""
        address, path = free_address(), self._scratch / f"offer-{number}"
        offer(path, RUN_ID, cache)
        words = ["--listen", address, "--offer", str(path), "--mbps", str(2 * self._link_mbps)]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "actor.weights.relay", *words, stderr=asyncio.subprocess.PIPE
        )
        assert process.stderr is not None
        while b"handing on" not in (line := await process.stderr.readline()):
            assert line, "the relay ended at its start"
        self._processes[number] = process

        async def end() -> None:
            if process.returncode is None:
                process.kill()
            await process.wait()

        stack.push_async_callback(end)
        return address

    def _puller(self, stack: AsyncExitStack, number: int, cache: Path, port: int, tree: RelayTree) -> WeightPuller:
        connect = connecting(None, insecure=False, send_timeout_seconds=1.0)
        channel = connect(f"tcp://127.0.0.1:{port}")
        stack.callback(channel.close)
        parent = Parent(connect, RUN_ID, lambda: tree.parent_of(number, 0.0))
        puller = WeightPuller(channel, cache, RUN_ID, STRETCH_BYTES, in_place=False, parent=parent)
        stack.callback(puller.close)
        return puller

    def _bytes(self) -> int:
        return sum(path.stat().st_size for path in self._store.rglob("*.safetensors"))


@asynccontextmanager
async def _running(router: Router, serving: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(serving)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        router.close()


def _cpu_seconds() -> float:
    """Of this process, which is all but the two relays that are killed and stopped."""
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)


def write_version(store: Path, num_bytes: int) -> None:
    """A version of random weights."""
    skeleton = store.parent / "skeleton"
    skeleton.mkdir()
    (skeleton / "config.json").write_text("{}")
    weights = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_snapshot(
        store, weights_version=1, run_id=RUN_ID, incarnation=1, step=1, tensors={"w": weights},
        skeleton_folder=skeleton,
    )  # fmt: skip
