"""By patches from what a machine has, bit for bit what the whole would have been, or the whole."""

import asyncio
import logging
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from actor.weights.puller import WeightPuller
from dcpo_async.protocol.messages import Envelope
from dcpo_async.protocol.weight_messages import ChunkMessage
from dcpo_async.transport.memory_channel import MemoryNetwork
from dcpo_async.weights.manifest import Manifest
from dcpo_async.weights.places import patches_folder, version_folder
from dcpo_async.weights.store import prune, write_snapshot
from tests.actor.weights.served import Watched, contents, names, puller, served

STORABLE = [
    torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip
NUM_ELEMENTS = 300_000


def write(store: Path, version: int, tensors: dict[str, Tensor], note: str = "") -> Manifest:
    skeleton = store.parent / "skeleton"
    skeleton.mkdir(exist_ok=True)
    (skeleton / "config.json").write_text('{"model": "tiny"}')
    (skeleton / "notes.txt").write_text(note)
    return write_snapshot(
        store, weights_version=version, run_id="run", incarnation=1, step=version, tensors=tensors,
        skeleton_folder=skeleton,
    )  # fmt: skip


def moved(tensors: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """A hundredth of the elements moves by one unit in the last place."""
    generator = torch.Generator().manual_seed(seed)
    new = {name: tensor.clone() for name, tensor in tensors.items()}
    for tensor in new.values():
        tensor.view(torch.int16)[torch.randperm(tensor.numel(), generator=generator)[: tensor.numel() // 100]] += 1
    return new


def publish_chain(store: Path, last: int) -> None:
    """Versions from 1 on, each a small step from the one before."""
    tensors = {"w": torch.randn(NUM_ELEMENTS, generator=torch.Generator().manual_seed(0)).bfloat16()}
    for version in range(1, last + 1):
        write(store, version, tensors, note="from 3 on" if version >= 3 else "")
        tensors = moved(tensors, version)


async def downloaded(client: WeightPuller, version: int) -> int:
    """Bytes that a fetch takes."""
    before = client.bytes_downloaded
    await client.fetch(version)
    return client.bytes_downloaded - before


async def test_a_machine_that_has_a_version_downloads_the_patches_since(store: Path, cache: Path) -> None:
    publish_chain(store, 5)
    network = MemoryNetwork()
    async with served(network.router(), store):
        client = puller(network.dealer(b"a"), cache)
        assert await downloaded(client, 1) > 2 * NUM_ELEMENTS
        assert 0 < await downloaded(client, 5) < 2 * NUM_ELEMENTS / 5
        assert contents(version_folder(cache, 5)) == contents(version_folder(store, 5))
        assert names(patches_folder(cache)) == [f"{number:08d}.patch" for number in (2, 3, 4, 5)]
        # Versions in between were skipped, and the one at hand is as it was.
        assert names(cache) == [".checked", ".fetch.lock", "patches", "v00000001", "v00000005"]
        assert contents(version_folder(cache, 1)) == contents(version_folder(store, 1))
        client.prune({5})
        assert names(patches_folder(cache)) == [f"{number:08d}.patch" for number in (2, 3, 4, 5)]
        client.close()
        client.prune(())
        assert names(patches_folder(cache)) == []


async def test_patches_that_lie_in_the_cache_are_not_fetched_again_unless_they_are_broken(
    store: Path, cache: Path
) -> None:
    publish_chain(store, 4)
    network = MemoryNetwork()
    async with served(network.router(), store):
        client = puller(network.dealer(b"a"), cache)
        await client.fetch(2)
        await client.fetch(3)
        (patches_folder(cache) / "00000003.patch").write_bytes(b"broken")
        client.prune({2})
        channel = Watched(network.dealer(b"b"))
        assert await downloaded(puller(channel, cache), 4) < 2 * NUM_ELEMENTS / 5
    assert {want.file for want in channel.asked} == {"00000003.patch", "00000004.patch", "notes.txt"}
    assert contents(version_folder(cache, 4)) == contents(version_folder(store, 4))


def open_to_all(folder: Path) -> None:
    """Others could change what is in it from now on, so that it is copied."""
    folder.chmod(0o777)


async def test_a_version_held_in_place_is_a_base(store: Path, cache: Path) -> None:
    publish_chain(store, 3)
    network = MemoryNetwork()
    async with served(network.router(), store):
        client = puller(network.dealer(b"a"), cache, in_place=True)
        folder, _ = await client.fetch(1)
        assert folder == version_folder(store, 1)
        open_to_all(store)
        assert await downloaded(client, 3) < 2 * NUM_ELEMENTS / 5
        client.close()
    assert contents(version_folder(cache, 3)) == contents(version_folder(store, 3))


async def falls_back(
    store: Path, cache: Path, caplog: pytest.LogCaptureFixture, why: str, left: tuple[str, ...] = ("patches",)
) -> None:
    """Version 3 is fetched whole although 1 is in the cache, and the log says why."""
    caplog.set_level(logging.INFO)
    network = MemoryNetwork()
    async with served(network.router(), store):
        client = puller(network.dealer(b"a"), cache)
        assert await downloaded(client, 3) > 2 * NUM_ELEMENTS
        client.close()
    assert contents(version_folder(cache, 3)) == contents(version_folder(store, 3))
    assert names(cache) == [".checked", ".fetch.lock", *left, "v00000001", "v00000003"]
    [line] = [record.getMessage() for record in caplog.records if "is fetched whole" in record.getMessage()]
    assert why in line


async def fetch_first(store: Path, cache: Path) -> None:
    publish_chain(store, 3)
    network = MemoryNetwork()
    async with served(network.router(), store):
        client = puller(network.dealer(b"first"), cache)
        await client.fetch(1)
        client.close()


async def test_another_base_leads_to_the_whole(store: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    await fetch_first(store, cache)
    path = version_folder(cache, 1) / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    await falls_back(store, cache, caplog, "model.safetensors does not match its digest")


async def test_a_base_that_was_cut_leads_to_the_whole(
    store: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await fetch_first(store, cache)
    path = version_folder(cache, 1) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    await falls_back(store, cache, caplog, "its header says")


async def test_a_base_without_a_manifest_leads_to_the_whole(
    store: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await fetch_first(store, cache)
    (version_folder(cache, 1) / "manifest.json").unlink()
    await falls_back(store, cache, caplog, "no weights manifest", left=())


@pytest.mark.parametrize("cut", [False, True])
async def test_a_torn_patch_leads_to_the_whole(
    store: Path, cache: Path, caplog: pytest.LogCaptureFixture, cut: bool
) -> None:
    await fetch_first(store, cache)
    path = patches_folder(store) / "00000002.patch"
    content = path.read_bytes()
    path.write_bytes(content[:-9] if cut else content[:-1] + bytes([content[-1] ^ 1]))
    await falls_back(store, cache, caplog, "its manifest says" if cut else "does not match its digest")


async def test_a_patch_that_is_gone_leads_to_the_whole(
    store: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await fetch_first(store, cache)
    (patches_folder(store) / "00000003.patch").unlink()
    await falls_back(store, cache, caplog, "is gone")


async def test_a_patch_that_is_broken_on_the_way_once_is_asked_for_again(store: Path, cache: Path) -> None:
    await fetch_first(store, cache)
    network = MemoryNetwork()
    broken: list[str] = []

    async def break_first(envelope: Envelope) -> Envelope:
        message = envelope.message
        if isinstance(message, ChunkMessage) and message.file == "00000002.patch" and not broken:
            broken.append(message.file)
            return Envelope(message, {"data": envelope.arrays["data"] ^ 1}, envelope.run_id)
        return envelope

    async with served(network.router(), store):
        channel = Watched(network.dealer(b"a"))
        channel.on_chunk = break_first
        assert await downloaded(puller(channel, cache), 3) < 2 * NUM_ELEMENTS / 5
    assert [want.file for want in channel.asked].count("00000002.patch") == 2
    assert contents(version_folder(cache, 3)) == contents(version_folder(store, 3))


@st.composite
def histories(draw: st.DrawFn) -> list[dict[str, Tensor]]:
    """Versions of tensors of any storable type and any bits, each changing any elements of the one before."""
    kinds = draw(st.lists(st.tuples(st.sampled_from(STORABLE), st.integers(0, 300)), min_size=1, max_size=3))
    states = []
    state = [
        bytearray(draw(st.binary(min_size=1, max_size=9)) * n * kind.itemsize)[: n * kind.itemsize] for kind, n in kinds
    ]
    for _ in range(draw(st.integers(2, 5))):
        for raw in state:
            for place, value in draw(st.dictionaries(st.integers(0, 2400), st.integers(0, 255), max_size=4)).items():
                if place < len(raw):
                    raw[place] = value
        states.append(
            {
                f"t{number}": torch.frombuffer(bytearray(b & 1 if kind is torch.bool else b for b in raw), dtype=kind)
                if raw
                else torch.empty(0, dtype=kind)
                for number, ((kind, _), raw) in enumerate(zip(kinds, state, strict=True))
            }
        )
    return states


@given(history=histories(), data=st.data())
@settings(max_examples=15, deadline=None)
def test_whatever_was_skipped_every_bit_is_that_of_the_store(
    history: list[dict[str, Tensor]], data: st.DataObject
) -> None:
    numbers = range(1, len(history) + 1)
    followed = data.draw(st.lists(st.sampled_from(numbers), unique=True, min_size=1).map(sorted))
    kept = data.draw(st.integers(1, len(history)))

    async def follow(folder: Path) -> None:
        network = MemoryNetwork()
        async with served(network.router(), folder / "store"):
            client = puller(network.dealer(b"a"), folder / "cache")
            for version, tensors in zip(numbers, history, strict=True):
                write(folder / "store", version, tensors)
                prune(folder / "store", keep=kept)
                if version in followed:
                    fetched, manifest = await client.fetch()
                    assert manifest.weights_version == version
                    assert contents(fetched) == contents(version_folder(folder / "store", version))
                    client.prune({version})
            client.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(follow(Path(folder)))
