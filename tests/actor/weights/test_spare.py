"""A version that nobody uses any more gives its pages to the next one, and to nobody else."""

import mmap
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from actor.weights.puller import WeightPuller
from actor.weights.spare import SPARE_NAME, set_aside
from dcpo_async.errors import WeightsError
from dcpo_async.protocol.messages import Envelope
from dcpo_async.protocol.weight_messages import ChunkMessage
from dcpo_async.transport.memory_channel import MemoryNetwork
from dcpo_async.weights.places import version_folder
from dcpo_async.weights.store import write_snapshot
from tests.actor.weights.served import Watched, contents, names, puller, served

WEIGHTS = "model.safetensors"


def publish(store: Path, version: int, num_elements: int = 5_000_000) -> None:
    """A version that shares no element with the others, so that it is fetched whole."""
    skeleton = store.parent / "skeleton"
    skeleton.mkdir(exist_ok=True)
    (skeleton / "config.json").write_text(f'{{"model": {version}}}')
    write_snapshot(
        store, weights_version=version, run_id="run", incarnation=1, step=version,
        tensors={"w": torch.full((num_elements,), version, dtype=torch.int32)}, skeleton_folder=skeleton,
    )  # fmt: skip


def inode(folder: Path, version: int) -> int:
    return (version_folder(folder, version) / WEIGHTS).stat().st_ino


async def let_go_of(client: WeightPuller, cache: Path, version: int) -> None:
    """Fetch a version, and no longer use it."""
    await client.fetch(version)
    client.prune({version + 1})
    assert names(cache) == [".checked", ".fetch.lock", SPARE_NAME]


@pytest.mark.parametrize("num_elements", [5_000_000, 3_000_001, 6_000_001])
async def test_the_next_version_is_written_into_the_pages_of_one_that_was_let_go(
    store: Path, cache: Path, num_elements: int
) -> None:
    publish(store, 1)
    publish(store, 2, num_elements)
    network = MemoryNetwork()
    async with served(network.router(), store):
        client = puller(network.dealer(b"a"), cache)
        await let_go_of(client, cache, 1)
        kept = (cache / SPARE_NAME / WEIGHTS).stat().st_ino
        await client.fetch(2)
    assert inode(cache, 2) == kept
    assert contents(version_folder(cache, 2)) == contents(version_folder(store, 2))
    assert names(cache) == [".checked", ".fetch.lock", "v00000002"]


async def test_what_is_still_mapped_is_not_written_over(store: Path, cache: Path) -> None:
    publish(store, 1)
    publish(store, 2)
    network = MemoryNetwork()
    async with served(network.router(), store):
        client = puller(network.dealer(b"a"), cache)
        await client.fetch(1)
        path = version_folder(cache, 1) / WEIGHTS
        content, first = path.read_bytes(), inode(cache, 1)
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        client.prune({2})
        await client.fetch(2)
    assert mapped[:] == content
    assert inode(cache, 2) != first
    assert contents(version_folder(cache, 2)) == contents(version_folder(store, 2))


async def test_a_fetch_that_fails_leaves_neither_a_version_nor_its_pages(store: Path, cache: Path) -> None:
    publish(store, 1)
    publish(store, 2)
    network = MemoryNetwork()

    async def flip(envelope: Envelope) -> Envelope:
        message = envelope.message
        if isinstance(message, ChunkMessage) and message.file == WEIGHTS and message.offset:
            return Envelope(message, {"data": envelope.arrays["data"] ^ np.uint8(1)}, envelope.run_id)
        return envelope

    async with served(network.router(), store):
        channel = Watched(network.dealer(b"a"))
        client = puller(channel, cache)
        await let_go_of(client, cache, 1)
        channel.on_chunk = flip
        with pytest.raises(WeightsError, match="does not match its digest"):
            await client.fetch(2)
        assert names(cache) == [".checked", ".fetch.lock"]
        channel.on_chunk = None
        await client.fetch(2)
    assert contents(version_folder(cache, 2)) == contents(version_folder(store, 2))
    assert names(cache) == [".checked", ".fetch.lock", "v00000002"]


async def test_the_pages_of_one_version_are_kept_and_none_at_the_end(store: Path, cache: Path) -> None:
    network = MemoryNetwork()
    async with served(network.router(), store):
        client = puller(network.dealer(b"a"), cache)
        for version in (1, 2):
            publish(store, version)
            await client.fetch(version)
        assert client.prune({3}) == [1, 2]
        assert names(cache) == [".checked", ".fetch.lock", SPARE_NAME]
        client.prune(())
    assert names(cache) == [".checked", ".fetch.lock"]


def test_pages_are_not_kept_where_one_more_version_has_no_room(cache: Path) -> None:
    folder = cache / "v00000001"
    folder.mkdir(parents=True)
    with (folder / WEIGHTS).open("xb") as file:
        file.truncate(shutil.disk_usage(cache).free + (1 << 30))
    set_aside(folder)
    assert names(cache) == []
