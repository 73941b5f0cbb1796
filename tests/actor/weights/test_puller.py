"""From the writer to the engine's folder: every byte arrives, whatever is lost on the way, or nothing is handed on."""

import asyncio
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from actor.weights.puller import WeightPuller
from dcpo_async.errors import NoRoomError, RefusedError, WeightsError
from dcpo_async.protocol.messages import Envelope
from dcpo_async.protocol.weight_messages import ChunkMessage, ManifestWant
from dcpo_async.records import STRETCH_BYTES
from dcpo_async.transport.memory_channel import Faults, MemoryNetwork
from dcpo_async.transport.zmq_channel import DealerChannel, RouterChannel
from dcpo_async.weights.manifest import MANIFEST_NAME, FileEntry
from tests.actor.weights.served import CHUNK_BYTES, NUM_CHUNKS, Watched, contents, names, publish, puller, served


async def test_the_newest_version_arrives_byte_for_byte(store: Path, cache: Path) -> None:
    publish(store, 1)
    manifest = publish(store, 2)
    network = MemoryNetwork()
    async with served(network.router(), store):
        channel = Watched(network.dealer(b"a"))
        folder, fetched = await puller(channel, cache).fetch()
    assert (folder, fetched) == (cache / "v00000002", manifest)
    assert contents(folder) == contents(store / "v00000002")
    assert names(cache) == [".checked", ".fetch.lock", "v00000002"]


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
    assert len(channel.asked) == NUM_CHUNKS


@pytest.mark.parametrize("seed", [0, 1, 2])
async def test_messages_that_are_lost_doubled_or_reordered_do_no_harm(store: Path, cache: Path, seed: int) -> None:
    publish(store, 1)
    network = MemoryNetwork(faults=Faults(seed, loss=0.2, duplication=0.3, reordering=0.2))
    async with served(network.router(), store):
        folder, _ = await puller(network.dealer(b"a"), cache, timeout_seconds=0.6).fetch()
    assert contents(folder) == contents(store / "v00000001")


async def test_a_server_killed_in_the_middle_is_asked_only_for_what_is_missing(store: Path, cache: Path) -> None:
    publish(store, 1)
    router = RouterChannel("tcp://127.0.0.1:0", 1 << 23)
    address = f"tcp://127.0.0.1:{router.port}"
    channel = Watched(DealerChannel(address, 1 << 23, send_timeout_seconds=0.2))
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
        async with served(RouterChannel(address, 1 << 23), store):
            folder, _ = await fetching
    finally:
        channel.close()
    assert contents(folder) == contents(store / "v00000001")
    assert NUM_CHUNKS <= len(channel.asked) <= NUM_CHUNKS + 3 * 8


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


async def test_a_version_without_room_is_refused_before_it_is_fetched_and_the_message_says_what_to_do(
    store: Path, cache: Path
) -> None:
    manifest = publish(store, 1)
    free = shutil.disk_usage(store).free
    digests = tuple("0" * 32 for _ in range(-(-2 * free // STRETCH_BYTES)))
    large = FileEntry(name="model.safetensors", num_bytes=2 * free, digests=digests)
    files = (*(entry for entry in manifest.files if entry.name != large.name), large)
    text = manifest.model_copy(update={"files": files}).to_json()
    (store / "v00000001" / MANIFEST_NAME).write_text(text)
    network = MemoryNetwork()
    async with served(network.router(), store):
        channel = Watched(network.dealer(b"a"))
        with pytest.raises(NoRoomError, match=r"bytes free, a version needs \d+, .* --weights-folder") as refused:
            await puller(channel, cache).fetch()
    assert refused.value.exit_code == 2
    assert channel.asked == []
    assert names(cache) == [".fetch.lock"]
