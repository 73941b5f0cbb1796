"""From one machine's cache to the next: as it comes, by digest, and by the origin wherever a relay fails."""

import asyncio
import time
from pathlib import Path

import pytest

from dcpo_async.protocol.messages import Envelope
from dcpo_async.protocol.weight_messages import ChunkMessage, ChunkWant, ManifestMessage, ManifestWant
from dcpo_async.transport.memory_channel import MemoryDealer, MemoryNetwork
from dcpo_async.transport.pacing import PacedRouter
from tests.actor.weights.relays import RELAY, Child, answering, chunk, relaying
from tests.actor.weights.served import (
    CHUNK_BYTES,
    NUM_CHUNKS,
    Watched,
    contents,
    names,
    publish,
    puller,
    served,
)
from tests.actor.weights.test_patching import publish_chain

MB = 1_000_000


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    """The cache of the parent's machine."""
    return tmp_path / "upper"


async def test_stretches_come_from_the_relay_and_only_the_manifest_from_the_origin(
    store: Path, cache: Path, upper: Path
) -> None:
    publish(store, 1)
    origin, network = MemoryNetwork(), MemoryNetwork()
    async with served(origin.router(), store), relaying(network.router(), upper):
        await puller(origin.dealer(b"upper"), upper).fetch()
        asked = Watched(origin.dealer(b"a"))
        child = Child(asked, network.dealer(b"a"), cache)
        folder, manifest = await child.puller.fetch()
    assert contents(folder) == contents(store / "v00000001")
    assert (asked.asked, child.lost) == ([], [])
    assert child.puller.bytes_from_origin == len(manifest.to_json())
    assert child.puller.bytes_downloaded > 10 * CHUNK_BYTES
    assert names(cache) == names(upper) == [".checked", ".fetch.lock", "v00000001"]


async def test_a_relay_passes_stretches_on_while_its_own_download_goes_on(
    store: Path, cache: Path, upper: Path
) -> None:
    publish(store, 1)
    origin, network = MemoryNetwork(), MemoryNetwork()
    # A second for all; by store and forward the child would have its first stretch after that.
    async with served(PacedRouter(origin.router(), 44 * MB), store), relaying(network.router(), upper):
        above = asyncio.create_task(puller(origin.dealer(b"upper"), upper).fetch())
        asked, heard = Watched(origin.dealer(b"a")), Watched(network.dealer(b"a"))
        done_above = list[bool]()

        async def note(envelope: Envelope) -> Envelope:
            done_above.append(above.done())
            return envelope

        heard.on_chunk = note
        child = Child(asked, heard, cache, silence_seconds=3.0)
        folder, _ = await child.puller.fetch()
        await above
    assert contents(folder) == contents(store / "v00000001")
    assert asked.asked == []
    assert done_above.count(False) > NUM_CHUNKS // 2


async def test_two_machines_down_the_tree_all_have_the_version(store: Path, tmp_path: Path) -> None:
    publish(store, 1)
    origin, first, second = MemoryNetwork(), MemoryNetwork(), MemoryNetwork()
    caches = [tmp_path / name for name in "abc"]
    async with (
        served(PacedRouter(origin.router(), 88 * MB), store),
        relaying(first.router(), caches[0]),
        relaying(second.router(), caches[1]),
    ):
        watched = [Watched(origin.dealer(name)) for name in (b"b", b"c")]
        children = [
            Child(watched[0], first.dealer(b"b"), caches[1], 3.0),
            Child(watched[1], second.dealer(b"c"), caches[2], 3.0),
        ]
        await asyncio.gather(
            puller(origin.dealer(b"a"), caches[0]).fetch(), *(child.puller.fetch() for child in children)
        )
    assert all(contents(cache / "v00000001") == contents(store / "v00000001") for cache in caches)
    assert [each.asked for each in watched] == [[], []]


async def test_a_request_is_parked_until_the_download_that_brings_it_has_begun(
    store: Path, cache: Path, upper: Path
) -> None:
    publish(store, 1)
    origin, network = MemoryNetwork(), MemoryNetwork()
    async with served(origin.router(), store), relaying(network.router(), upper):
        asked = Watched(origin.dealer(b"a"))
        below = asyncio.create_task(Child(asked, network.dealer(b"a"), cache, 3.0).puller.fetch())
        await asyncio.sleep(0.3)
        await puller(origin.dealer(b"upper"), upper).fetch()
        folder, _ = await below
    assert contents(folder) == contents(store / "v00000001")
    assert asked.asked == []


async def test_a_relay_that_has_not_got_the_version_says_so_and_stays_the_parent(
    store: Path, cache: Path, upper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcpo_async.weight_serving.relaying.GRACE_SECONDS", 0.1)
    publish(store, 1)
    origin, network = MemoryNetwork(), MemoryNetwork()
    async with served(origin.router(), store), relaying(network.router(), upper):
        asked = Watched(origin.dealer(b"a"))
        child = Child(asked, lambda relay: network.dealer(b"a"), cache)
        folder, _ = await child.puller.fetch()
        assert contents(folder) == contents(store / "v00000001")
        assert (len(asked.asked), child.lost) == (NUM_CHUNKS, [])
        publish(store, 2)
        await puller(origin.dealer(b"upper"), upper).fetch()
        await child.puller.fetch()
    assert len(asked.asked) == NUM_CHUNKS


async def test_patches_are_handed_on_too(store: Path, cache: Path, upper: Path) -> None:
    publish_chain(store, 3)
    origin, network = MemoryNetwork(), MemoryNetwork()
    async with served(origin.router(), store), relaying(network.router(), upper):
        above, asked = puller(origin.dealer(b"upper"), upper), Watched(origin.dealer(b"a"))
        child = Child(asked, network.dealer(b"a"), cache)
        for version in (1, 3):
            await above.fetch(version)
            _, manifest = await child.puller.fetch(version)
    assert [patch.name for patch in manifest.patches] == ["00000002.patch", "00000003.patch"]
    assert names(cache / "patches") == names(upper / "patches") == ["00000002.patch", "00000003.patch"]
    # A file that is new in a version is fetched beside its patches.
    assert asked.asked == []
    assert contents(cache / "v00000003") == contents(store / "v00000003")


async def test_wrong_bytes_of_a_relay_are_never_written_and_it_is_reported(
    store: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(store, 1)
    origin, network, sent = MemoryNetwork(), MemoryNetwork(), list[int]()

    def forged(want: ChunkWant) -> Envelope:
        sent.append(want.offset)
        return chunk(want, b"x" * want.num_bytes)

    async with served(origin.router(), store), answering(network.router(), forged):
        asked = Watched(origin.dealer(b"a"))
        child = Child(asked, network.dealer(b"a"), cache)
        folder, _ = await child.puller.fetch()
        assert contents(folder) == contents(store / "v00000001")
        assert child.lost == [RELAY]
        assert "does not match its digest from byte 0 on, as the relay at tcp://relay:5560 sent it once" in caplog.text
        num_sent = len(sent)
        publish(store, 2)
        await child.puller.fetch()
    assert len(sent) == num_sent, "it is not asked again"


@pytest.mark.parametrize("num_right", [0, 5])
async def test_what_a_relay_brought_before_it_failed_is_not_asked_for_again(
    store: Path, cache: Path, num_right: int
) -> None:
    publish(store, 1)
    origin, network, sent = MemoryNetwork(), MemoryNetwork(), list[int]()
    whole = {path.name: path.read_bytes() for path in (store / "v00000001").iterdir()}

    def answer(want: ChunkWant) -> Envelope | None:
        if len(sent) == num_right:
            return None
        sent.append(want.offset)
        return chunk(want, whole[want.file][want.offset : want.offset + want.num_bytes])

    async with served(origin.router(), store), answering(network.router(), answer):
        asked = Watched(origin.dealer(b"a"))
        child = Child(asked, network.dealer(b"a"), cache)
        folder, _ = await child.puller.fetch()
    assert contents(folder) == contents(store / "v00000001")
    assert (len(asked.asked), child.lost) == (NUM_CHUNKS - num_right, [RELAY])


@pytest.mark.parametrize(
    "answer",
    [
        lambda want: chunk(want, b"short"),
        lambda want: chunk(want, later=True),
        lambda want: Envelope(ManifestWant(weights_version=1), run_id="run"),
        lambda want: Envelope(ManifestMessage(weights_version=1, manifest_json="{}"), run_id="run"),
    ],
    ids=["bytes of another length", "only promises", "questions", "manifests"],
)
async def test_whatever_else_a_relay_says_the_version_comes_from_the_origin(
    store: Path, cache: Path, answer: object
) -> None:
    publish(store, 1)
    origin, network = MemoryNetwork(), MemoryNetwork()
    async with served(origin.router(), store), answering(network.router(), answer):  # type: ignore[arg-type]
        child = Child(origin.dealer(b"a"), network.dealer(b"a"), cache, silence_seconds=0.2)
        folder, manifest = await child.puller.fetch()
    assert contents(folder) == contents(store / "v00000001")
    assert manifest.weights_version == 1
    assert child.lost == [RELAY]


async def test_a_relay_that_is_named_anew_is_asked_after_another_was(store: Path, cache: Path, upper: Path) -> None:
    publish(store, 1)
    origin, good = MemoryNetwork(), MemoryNetwork()
    connected = list[str]()

    def connect(relay: str) -> MemoryDealer:
        connected.append(relay)
        return good.dealer(b"a") if relay == "tcp://good:1" else MemoryNetwork().dealer(b"a")

    async with served(origin.router(), store), relaying(good.router(), upper):
        child = Child(origin.dealer(b"a"), connect, cache)
        await child.puller.fetch()
        publish(store, 2)
        await puller(origin.dealer(b"upper"), upper).fetch()
        child.ask = "tcp://good:1"
        await child.puller.fetch()
    assert (connected, child.lost) == ([RELAY, "tcp://good:1"], [RELAY])


async def test_names_that_no_version_has_and_other_runs_are_refused(
    store: Path, upper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcpo_async.weight_serving.relaying.GRACE_SECONDS", 0.1)
    publish(upper, 1)
    network = MemoryNetwork()
    async with relaying(network.router(), upper):
        dealer = network.dealer(b"a")
        for file, run_id, problem in (
            ("../v00000001/config.json", "run", "no version has a file"),
            (".arrived", "run", "no version has a file"),
            ("manifest.json", "run", "no version has a file"),
            ("other.json", "run", "is not here"),
            ("config.json", "other", "run 'other' is not here"),
        ):
            want = ChunkWant(weights_version=1, file=file, offset=0, num_bytes=4)
            await dealer.send(Envelope(want, run_id=run_id))
            while True:
                answer = await dealer.receive(5.0)
                assert answer is not None
                assert isinstance(answer.message, ChunkMessage)
                if not answer.message.later:
                    break
            assert problem in answer.message.error
        want = ChunkWant(weights_version=1, file="config.json", offset=10, num_bytes=1000)
        await dealer.send(Envelope(want, run_id="run"))
        answer = await dealer.receive(5.0)
        assert answer is not None
        assert "asked for 1000 from 10 on" in answer.message.error  # type: ignore[attr-defined]


async def test_a_download_that_stands_still_is_not_waited_for(
    store: Path, cache: Path, upper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcpo_async.weight_serving.relaying.GRACE_SECONDS", 0.1)
    monkeypatch.setattr("dcpo_async.weight_serving.relaying.STALLED_SECONDS", 0.5)
    publish(store, 1)
    origin, network = MemoryNetwork(), MemoryNetwork()
    async with served(origin.router(), store), relaying(network.router(), upper):
        above_channel = Watched(origin.dealer(b"upper"))

        async def stop(envelope: Envelope) -> Envelope:
            if len(above_channel.asked) >= NUM_CHUNKS:
                await asyncio.sleep(60)
            return envelope

        above_channel.on_chunk = stop
        above = asyncio.create_task(puller(above_channel, upper).fetch())
        asked = Watched(origin.dealer(b"a"))
        child = Child(asked, network.dealer(b"a"), cache, 3.0)
        started = time.monotonic()
        folder, _ = await child.puller.fetch()
        above.cancel()
        await asyncio.gather(above, return_exceptions=True)
    assert contents(folder) == contents(store / "v00000001")
    assert 0 < len(asked.asked) < NUM_CHUNKS
    assert time.monotonic() - started < 5
    assert child.lost == []
    assert names(upper) == [".fetch.lock"]
