"""The folder that the processes of a machine share: one downloads, nobody removes what another uses."""

import asyncio
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actor.weights.cache import default_cache_folder, sweep_siblings
from dcpo_async.errors import WeightsError
from dcpo_async.protocol.messages import Envelope
from dcpo_async.protocol.weight_messages import ManifestMessage
from dcpo_async.transport.interfaces import Dealer, Router
from dcpo_async.transport.memory_channel import MemoryNetwork
from dcpo_async.weights.locks import has_lock, hold, let_go, opened
from dcpo_async.weights.places import version_folder, versions
from dcpo_async.weights.store import discard_unused, prune
from tests.actor.weights.served import NUM_CHUNKS, Watched, contents, names, publish, puller, served

HOLD_THE_LOCK = """
import fcntl, os, sys, time
lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(lock, fcntl.LOCK_EX)
os.write(lock, str(os.getpid()).encode())
print("locked", flush=True)
time.sleep(60)
"""


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
    assert sum(len(channel.asked) for channel in channels) == NUM_CHUNKS
    assert {folder for folder, _ in found} == {cache / "v00000001"}
    assert again.asked == []


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
    assert names(cache) == [".checked", ".fetch.lock", "v00000001"]


async def test_prune_leaves_alone_what_another_process_uses(store: Path, cache: Path) -> None:
    network = MemoryNetwork()
    async with served(network.router(), store):
        mine, other = puller(network.dealer(b"a"), cache), puller(network.dealer(b"b"), cache)
        for version in (1, 2, 3):
            publish(store, version)
            await mine.fetch()
        await other.fetch(2)
        assert mine.prune({3}) == [1]
        assert names(cache) == [".checked", ".fetch.lock", ".spare", "v00000002", "v00000003"]
        assert other.prune({3}) == [2]
        assert other.prune(set()) == []
        mine.close()
        assert other.prune(set()) == [3]
    assert names(cache) == [".checked", ".fetch.lock"]
    assert names(cache / ".checked") == []


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


# ---- a store on the same machine


async def test_a_version_that_stands_on_this_machine_is_used_where_it_is(store: Path, cache: Path) -> None:
    publish(store, 1)
    network = MemoryNetwork()
    async with served(network.router(), store):
        client = puller(network.dealer(b"actor"), cache, in_place=True)
        folder, manifest = await client.fetch()
        assert folder == version_folder(store, manifest.weights_version)
        assert versions(cache) == []
        publish(store, 2)
        assert prune(store, keep=1) == []
        assert (await client.fetch())[0] == version_folder(store, 2)
        client.prune({2})
        assert prune(store, keep=1) == [1]
        client.close()


@pytest.mark.parametrize("up", [0, 1, 2])
async def test_a_version_that_others_could_change_is_copied(store: Path, cache: Path, up: int) -> None:
    publish(store, 1)
    network = MemoryNetwork()
    # The version, the store, or a folder above it.
    (version_folder(store, 1), *version_folder(store, 1).parents)[up].chmod(0o777)
    async with served(network.router(), store):
        client = puller(network.dealer(b"actor"), cache / "private" / "run", in_place=True)
        assert (await client.fetch())[0] == version_folder(cache / "private" / "run", 1)
        client.close()


@pytest.mark.parametrize("up", [0, 1])
async def test_a_cache_that_others_could_change_is_refused(store: Path, cache: Path, up: int) -> None:
    publish(store, 1)
    network = MemoryNetwork()
    folder = cache / "mine" / "run"
    folder.mkdir(parents=True)
    (folder, folder.parent)[up].chmod(0o770)
    async with served(network.router(), store):
        client = puller(network.dealer(b"actor"), folder, in_place=True)
        with pytest.raises(WeightsError, match=r"others may write to .*; run chmod go-w on it"):
            await client.fetch()


async def test_a_version_that_does_not_match_its_manifest_is_not_used_in_place(store: Path, cache: Path) -> None:
    publish(store, 1)
    network = MemoryNetwork()
    async with served(network.router(), store):
        client = puller(network.dealer(b"actor"), cache, in_place=True)
        await client.newest()
        with (version_folder(store, 1) / "model.safetensors").open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"x")
        with pytest.raises(WeightsError, match="does not match its digest"):
            await client.fetch()
        assert discard_unused(version_folder(store, 1))


@pytest.mark.parametrize(
    "other",
    [{"machine": "another"}, {"inode": 1}, {"device": 1}, {"folder": "v00000001"}, {"folder": "/a\0b"}, {"folder": ""}],
)
async def test_a_version_on_another_machine_or_in_another_folder_is_fetched(
    store: Path, cache: Path, other: dict[str, Any]
) -> None:
    publish(store, 1)
    network, elsewhere = MemoryNetwork(), MemoryNetwork()

    async def of_another_machine(router: Router, dealer: Dealer) -> None:
        while True:
            for received in await router.receive(1.0):
                assert isinstance(received.envelope, Envelope)
                await dealer.send(received.envelope)
                answer = await dealer.receive(5.0)
                assert answer is not None
                if isinstance(answer.message, ManifestMessage):
                    answer = replace(answer, message=answer.message.model_copy(update=other))
                await router.send(received.peer, answer)

    async with served(network.router(), store):
        relay = asyncio.create_task(of_another_machine(elsewhere.router(), network.dealer(b"relay")))
        client = puller(elsewhere.dealer(b"actor"), cache, in_place=True)
        assert (await client.fetch())[0] == version_folder(cache, 1)
        relay.cancel()
        await asyncio.gather(relay, return_exceptions=True)
        client.close()


def abandoned(cache: Path, version: int) -> Path:
    """A run's cache as a killed actor leaves it, two minutes ago."""
    folder = version_folder(cache, version)
    folder.mkdir(parents=True, mode=0o700)
    (folder / "model.safetensors").write_bytes(b"weights")
    for name in (".checked", ".unfinished-x", "patches", "engine-0"):
        (cache / name).mkdir()
    (cache / ".fetch.lock").touch()
    for path in (cache, cache / ".fetch.lock"):
        os.utime(path, (time.time() - 120,) * 2)
    return folder


def test_what_killed_actors_of_other_runs_left_is_swept(tmp_path: Path) -> None:
    abandoned(tmp_path / "dead", 3)
    own = abandoned(tmp_path / "own", 3)
    assert sweep_siblings(tmp_path / "own") == [tmp_path / "dead"]
    assert not (tmp_path / "dead").exists()
    assert own.exists()
    assert sweep_siblings(tmp_path / "none" / "own") == []


def test_what_somebody_may_use_is_not_swept(tmp_path: Path) -> None:
    for name in ("held", "fetching", "engine", "new", "foreign"):
        abandoned(tmp_path / name, 3)
    held = hold(version_folder(tmp_path / "held", 3))
    assert held is not None
    os.utime(tmp_path / "new" / ".fetch.lock")
    (tmp_path / "foreign" / "notes.txt").touch()
    os.utime(tmp_path / "foreign", (time.time() - 120,) * 2)
    (tmp_path / "link").symlink_to(tmp_path / "own")
    with (
        opened(tmp_path / "fetching" / ".fetch.lock", os.O_RDWR) as lock,
        opened(tmp_path / "engine" / "engine-0", os.O_RDONLY | os.O_DIRECTORY) as place,
    ):
        assert has_lock(lock, fcntl.LOCK_EX)
        assert has_lock(place, fcntl.LOCK_EX)
        assert sweep_siblings(tmp_path / "own") == []
    let_go(held)
    assert sweep_siblings(tmp_path / "own") == [tmp_path / name for name in ("engine", "fetching", "held")]


async def test_a_fetch_goes_on_where_its_cache_is_swept_before_it_begins(store: Path, cache: Path) -> None:
    publish(store, 1)
    network = MemoryNetwork()
    async with served(network.router(), store):
        with opened_lock(cache):
            fetching = asyncio.create_task(puller(network.dealer(b"a"), cache).fetch())
            await asyncio.sleep(0.3)
            shutil.rmtree(cache)
        folder, _ = await fetching
    assert contents(folder) == contents(store / "v00000001")


@contextmanager
def opened_lock(cache: Path) -> Iterator[None]:
    """Somebody sweeps the cache: it has the lock on downloads."""
    cache.mkdir(mode=0o700)
    with opened(cache / ".fetch.lock", os.O_RDWR | os.O_CREAT) as lock:
        assert has_lock(lock, fcntl.LOCK_EX)
        yield
