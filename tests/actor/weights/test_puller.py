"""From the writer to the engine's folder: every byte arrives, whatever is lost on the way, or nothing is handed on."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from actor.weights.puller import WeightPuller, default_cache_folder
from dcpo_async.errors import RefusedError, WeightsError
from dcpo_async.protocol.messages import ChunkMessage, ChunkWant, Envelope, ManifestWant
from dcpo_async.transport.interfaces import Dealer, Router
from dcpo_async.transport.memory_channel import Faults, MemoryNetwork
from dcpo_async.transport.zmq_channel import DealerChannel, RouterChannel
from dcpo_async.weights.manifest import Manifest
from dcpo_async.weights.store import write_snapshot
from learner.weights.server import serve

CHUNK_BYTES = 1000
NUM_CHUNKS = 41  # 40 000 bytes of elements and a header


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
        tensors={"w": torch.arange(10_000.0) + version},
        skeleton_folder=skeleton,
    )


@asynccontextmanager
async def served(router: Router, store: Path) -> AsyncIterator[None]:
    serving = asyncio.create_task(serve(router, store, "run", incarnation=1))
    try:
        yield
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
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


def puller(channel: Dealer, cache: Path, timeout_seconds: float = 5.0, credit: int = 8) -> WeightPuller:
    return WeightPuller(channel, cache, "run", CHUNK_BYTES, credit, timeout_seconds, peer="tcp://learner:5558")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


async def test_the_newest_version_arrives_byte_for_byte(store: Path, cache: Path) -> None:
    publish(store, 1)
    manifest = publish(store, 2)
    network = MemoryNetwork()
    async with served(network.router(), store):
        channel = Watched(network.dealer(b"a"))
        folder, fetched = await puller(channel, cache).fetch()
    assert (folder, fetched) == (cache / "v00000002", manifest)
    assert contents(folder) == contents(store / "v00000002")
    assert names(cache) == [".fetch.lock", "v00000002"]


async def test_a_version_can_be_asked_for_by_number(store: Path, cache: Path) -> None:
    publish(store, 1)
    publish(store, 2)
    network = MemoryNetwork()
    async with served(network.router(), store):
        folder, manifest = await puller(network.dealer(b"a"), cache).fetch(1)
        assert manifest.weights_version == 1
        assert contents(folder) == contents(store / "v00000001")
        with pytest.raises(WeightsError, match=r"tcp://learner:5558: version 7 is not in the store"):
            await puller(network.dealer(b"a"), cache).fetch(7)


@pytest.mark.parametrize("credit", [1, 5])
async def test_no_more_chunks_are_outstanding_than_the_credit(store: Path, cache: Path, credit: int) -> None:
    publish(store, 1)
    network = MemoryNetwork()
    async with served(network.router(), store):
        channel = Watched(network.dealer(b"a"))
        await puller(channel, cache, credit=credit).fetch()
    assert channel.most_outstanding == credit
    assert len(channel.asked) == NUM_CHUNKS + 1


@pytest.mark.parametrize("seed", [0, 1, 2])
async def test_messages_that_are_lost_doubled_or_reordered_do_no_harm(store: Path, cache: Path, seed: int) -> None:
    publish(store, 1)
    network = MemoryNetwork(faults=Faults(seed, loss=0.05, duplication=0.1, reordering=0.05))
    async with served(network.router(), store):
        folder, _ = await puller(network.dealer(b"a"), cache, timeout_seconds=0.6).fetch()
    assert contents(folder) == contents(store / "v00000001")


async def test_a_server_killed_in_the_middle_is_asked_only_for_what_is_missing(store: Path, cache: Path) -> None:
    publish(store, 1)
    router = RouterChannel("tcp://127.0.0.1:0", 1 << 20)
    address = f"tcp://127.0.0.1:{router.port}"
    channel = Watched(DealerChannel(address, b"a", 1 << 20, send_timeout_seconds=0.2))
    reached = asyncio.Event()

    async def count(envelope: Envelope) -> Envelope:
        if len(channel.asked) > NUM_CHUNKS // 2:
            reached.set()
        return envelope

    channel.on_chunk = count
    try:
        async with served(router, store):
            fetching = asyncio.create_task(puller(channel, cache, timeout_seconds=6).fetch())
            await asyncio.wait_for(reached.wait(), 10)
        assert not fetching.done()
        async with served(RouterChannel(address, 1 << 20), store):
            folder, _ = await fetching
    finally:
        channel.close()
    assert contents(folder) == contents(store / "v00000001")
    assert NUM_CHUNKS + 1 <= len(channel.asked) <= NUM_CHUNKS + 1 + 3 * 8


async def test_a_byte_that_flips_on_the_wire_is_never_handed_on(store: Path, cache: Path) -> None:
    publish(store, 1)

    async def flip(envelope: Envelope) -> Envelope:
        message = envelope.message
        if isinstance(message, ChunkMessage) and message.offset == 7 * CHUNK_BYTES:
            data = envelope.arrays["data"] ^ (np.arange(CHUNK_BYTES) == 500).astype(np.uint8)
            return Envelope(message, {"data": data}, envelope.run_id)
        return envelope

    network = MemoryNetwork()
    async with served(network.router(), store):
        channel = Watched(network.dealer(b"a"))
        channel.on_chunk = flip
        with pytest.raises(WeightsError, match=r"model\.safetensors does not match its digest"):
            await puller(channel, cache).fetch()
        assert names(cache) == [".fetch.lock"]
        channel.on_chunk = None
        folder, _ = await puller(channel, cache).fetch()
    assert contents(folder) == contents(store / "v00000001")


async def test_a_byte_that_flips_in_the_store_is_never_handed_on(store: Path, cache: Path) -> None:
    publish(store, 1)
    path = store / "v00000001" / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 4]))
    network = MemoryNetwork()
    async with served(network.router(), store):
        with pytest.raises(WeightsError, match="does not match its digest"):
            await puller(network.dealer(b"a"), cache).fetch()
    assert not (cache / "v00000001").exists()


async def test_a_corrupt_cached_version_is_fetched_again_while_another_uses_it(store: Path, cache: Path) -> None:
    publish(store, 1)
    network = MemoryNetwork()
    async with served(network.router(), store):
        await puller(network.dealer(b"a"), cache).fetch()
        path = cache / "v00000001" / "model.safetensors"
        path.write_bytes(b"\1" + path.read_bytes()[1:])
        folder, _ = await puller(network.dealer(b"b"), cache).fetch()
    assert contents(folder) == contents(store / "v00000001")


async def test_processes_of_one_machine_download_once(store: Path, cache: Path) -> None:
    publish(store, 1)
    network = MemoryNetwork()
    async with served(network.router(), store):
        channels = [Watched(network.dealer(name)) for name in (b"a", b"b", b"c")]
        found = await asyncio.gather(*(puller(channel, cache).fetch() for channel in channels))
        again = Watched(network.dealer(b"d"))
        await puller(again, cache).fetch()
    assert sum(len(channel.asked) for channel in channels) == NUM_CHUNKS + 1
    assert {folder for folder, _ in found} == {cache / "v00000001"}
    assert again.asked == []


HOLD_THE_LOCK = """
import fcntl, os, sys, time
lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(lock, fcntl.LOCK_EX)
os.write(lock, str(os.getpid()).encode())
print("locked", flush=True)
time.sleep(60)
"""


def lock_holder(cache: Path) -> subprocess.Popen[str]:
    """Another process in the middle of a download."""
    cache.mkdir(mode=0o700)
    (cache / ".unfinished-old").mkdir()
    argv = [sys.executable, "-c", HOLD_THE_LOCK, str(cache / ".fetch.lock")]
    holder = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    return holder


async def test_a_process_that_hangs_in_a_download_is_named_and_one_that_dies_is_replaced(
    store: Path, cache: Path
) -> None:
    publish(store, 1)
    with lock_holder(cache) as holder:
        try:
            network = MemoryNetwork()
            async with served(network.router(), store):
                with pytest.raises(WeightsError, match=f"process {holder.pid} of this machine"):
                    await puller(network.dealer(b"a"), cache, timeout_seconds=0.2).fetch()
                fetching = asyncio.create_task(puller(network.dealer(b"a"), cache).fetch())
                await asyncio.sleep(0.2)
                assert not fetching.done()
                holder.kill()
                folder, _ = await fetching
        finally:
            holder.kill()
    assert contents(folder) == contents(store / "v00000001")
    assert names(cache) == [".fetch.lock", "v00000001"]


async def test_prune_leaves_alone_what_another_process_uses(store: Path, cache: Path) -> None:
    network = MemoryNetwork()
    async with served(network.router(), store):
        mine, other = puller(network.dealer(b"a"), cache), puller(network.dealer(b"b"), cache)
        for version in (1, 2, 3):
            publish(store, version)
            await mine.fetch()
        await other.fetch(2)
        assert mine.prune({3}) == [1]
        assert names(cache) == [".fetch.lock", "v00000002", "v00000003"]
        assert other.prune({3}) == [2]
        assert other.prune(set()) == []
        mine.close()
        assert other.prune(set()) == [3]
    assert names(cache) == [".fetch.lock"]


async def test_a_silent_server_is_named_after_the_time_out(store: Path, cache: Path) -> None:
    network = MemoryNetwork()
    router = network.router()
    started = time.monotonic()
    with pytest.raises(WeightsError, match=r"tcp://learner:5558 of run run made no progress for 0\.3 s"):
        await puller(network.dealer(b"a"), cache, timeout_seconds=0.3).fetch()
    assert 0.3 <= time.monotonic() - started < 2
    assert 6 <= len(await router.receive(0)) <= 8
    router.close()
    with pytest.raises(WeightsError, match="no router is open"):
        await puller(network.dealer(b"a"), cache, timeout_seconds=0.3).fetch()


async def test_a_server_that_falls_silent_in_the_middle_leaves_nothing(store: Path, cache: Path) -> None:
    publish(store, 1)
    network = MemoryNetwork()
    channel = Watched(network.dealer(b"a"))

    async def lose_the_rest(envelope: Envelope) -> Envelope:
        network.faults.loss = 1.0
        return envelope

    channel.on_chunk = lose_the_rest
    async with served(network.router(), store):
        with pytest.raises(WeightsError, match="made no progress"):
            await puller(channel, cache, timeout_seconds=0.3).fetch()
    assert names(cache) == [".fetch.lock"]


async def test_a_chunk_of_another_length_is_refused(store: Path, cache: Path) -> None:
    publish(store, 1)
    network = MemoryNetwork()
    channel = Watched(network.dealer(b"a"))

    async def cut(envelope: Envelope) -> Envelope:
        return Envelope(envelope.message, {"data": envelope.arrays["data"][:-1]}, envelope.run_id)

    channel.on_chunk = cut
    async with served(network.router(), store):
        with pytest.raises(WeightsError, match=r"sent 16 bytes of config\.json from 0 on, asked for 17"):
            await puller(channel, cache).fetch()


async def test_a_late_answer_to_an_earlier_call_does_not_pass_for_the_newest(store: Path, cache: Path) -> None:
    publish(store, 1)
    network = MemoryNetwork()
    async with served(network.router(), store):
        dealer = network.dealer(b"a")
        await dealer.send(Envelope(ManifestWant(weights_version=0), run_id="run"))
        await asyncio.sleep(0.1)
        publish(store, 2)
        _, manifest = await puller(dealer, cache).fetch()
    assert manifest.weights_version == 2


async def test_another_run_is_refused_for_good(store: Path, cache: Path) -> None:
    publish(store, 1)
    network = MemoryNetwork()
    async with served(network.router(), store):
        with pytest.raises(RefusedError, match="weight server of run run, not of 'old'"):
            await WeightPuller(network.dealer(b"a"), cache, "old", CHUNK_BYTES).fetch()


async def test_a_cancelled_fetch_lets_the_next_one_in(store: Path, cache: Path) -> None:
    publish(store, 1)
    network = MemoryNetwork()
    channel = Watched(network.dealer(b"a"))
    begun = asyncio.Event()

    async def stall(envelope: Envelope) -> Envelope:
        begun.set()
        await asyncio.sleep(60)
        return envelope

    channel.on_chunk = stall
    async with served(network.router(), store):
        fetching = asyncio.create_task(puller(channel, cache).fetch())
        await asyncio.wait_for(begun.wait(), 10)
        fetching.cancel()
        await asyncio.gather(fetching, return_exceptions=True)
        folder, _ = await puller(network.dealer(b"b"), cache).fetch()
    assert contents(folder) == contents(store / "v00000001")


def open_to_all(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


async def test_a_cache_that_others_can_write_to_is_refused(store: Path, cache: Path) -> None:
    publish(store, 1)
    open_to_all(cache)
    network = MemoryNetwork()
    async with served(network.router(), store):
        with pytest.raises(WeightsError, match="others may write"):
            await puller(network.dealer(b"a"), cache).fetch()


def test_the_default_cache_is_the_users_own_and_the_runs_own() -> None:
    folder = default_cache_folder("demo-1a2b")
    assert (folder.name, folder.parent.name) == ("demo-1a2b", f"dcpo-{os.getuid()}")
    assert os.access(folder.parent.parent, os.W_OK)


@pytest.mark.parametrize("run_id", ["../other", "a/b", "..", ".", "", "/"])
def test_a_run_id_that_cannot_name_a_folder_is_refused(run_id: str) -> None:
    with pytest.raises(WeightsError, match="cannot name a folder"):
        default_cache_folder(run_id)
