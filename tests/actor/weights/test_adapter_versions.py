"""Adapters on their way to an engine: the frozen weights come once, each version brings its own bytes alone."""

from pathlib import Path

import pytest

from actor.engine.model_files import Kind
from actor.engine.scripted import ScriptedEngine
from dcpo_async.errors import WeightsError
from dcpo_async.transport.memory_channel import MemoryNetwork
from dcpo_async.weights.manifest import base_of, read_manifest
from dcpo_async.weights.places import version_folder, versions
from dcpo_async.weights.store import prune
from tests.actor.weights.served import Watched, contents, names, puller, served
from tests.adapters.made import AdapterRun

VOCAB_SIZE = 40_000
"""Makes a model of 20 MB, whose adapter of rank 3 is below 2 % of it as a larger one's is."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> AdapterRun:
    run = AdapterRun(tmp_path_factory.mktemp("run"), vocab_size=VOCAB_SIZE)
    run.publish_base(1)
    for version in (2, 3):
        run.publish_adapter(version, 1)
    return run


async def test_the_frozen_weights_come_once_and_each_version_by_its_own_bytes(run: AdapterRun, cache: Path) -> None:
    network = MemoryNetwork()
    async with served(network.router(), run.store):
        channel = Watched(network.dealer(b"a"))
        fetching = puller(channel, cache)
        folder, manifest = await fetching.fetch(2)
        assert manifest.base_version == 1
        assert base_of(folder) == cache / "v00000001"
        for version in (1, 2):
            assert contents(version_folder(cache, version)) == contents(version_folder(run.store, version))
        first, whole = fetching.bytes_downloaded, sum(e.num_bytes for e in read_manifest(cache / "v00000001").files)
        assert first > whole

        channel.asked.clear()
        folder, manifest = await fetching.fetch()
        assert contents(folder) == contents(version_folder(run.store, 3))
        assert {want.weights_version for want in channel.asked} == {3}
        assert fetching.bytes_downloaded - first < 0.02 * whole
        assert fetching.prune({3}) == [2]
        assert versions(cache) == [1, 3]
        assert sorted(fetching.prune(())) == [1, 3]


async def test_on_the_learners_machine_both_are_used_where_they_are_and_held_there(
    run: AdapterRun, cache: Path, tmp_path: Path
) -> None:
    network = MemoryNetwork()
    async with served(network.router(), run.store):
        fetching = puller(network.dealer(b"a"), cache, in_place=True)
        folder, _ = await fetching.fetch(2)
        assert (folder, fetching.is_in_place) == (version_folder(run.store, 2), True)
        assert base_of(folder) == version_folder(run.store, 1)
        # A learner that keeps one version leaves alone what this machine uses.
        assert prune(run.store, keep=1) == []
        assert names(cache) == [".checked"]


async def test_frozen_weights_alone_are_no_version_yet(tmp_path: Path, cache: Path) -> None:
    run = AdapterRun(tmp_path / "run")
    run.publish_base(1)
    network = MemoryNetwork()
    async with served(network.router(), run.store):
        with pytest.raises(WeightsError, match="no weights version is published yet"):
            await puller(network.dealer(b"a"), cache).fetch()


def test_an_engine_knows_the_rank_and_the_model_of_an_adapter_and_refuses_others(
    run: AdapterRun, tmp_path: Path
) -> None:
    kind = Kind.of(version_folder(run.store, 3))
    assert kind.frozen == ("run", 1)
    assert kind.lora_arguments["max_lora_rank"] == 8
    kind.check(version_folder(run.store, 3))
    with pytest.raises(WeightsError, match="has an adapter to None, the engine was started with one to"):
        kind.check(version_folder(run.store, 1))
    assert Kind.of(version_folder(run.store, 1)).lora_arguments == {}
    other = AdapterRun(tmp_path / "other", run_id="other")
    other.publish_base(1)
    other.publish_adapter(2, 1)
    with pytest.raises(WeightsError, match="has an adapter to"):
        kind.check(version_folder(other.store, 2))


async def test_the_scripted_engine_reads_the_model_below(run: AdapterRun) -> None:
    engine = ScriptedEngine()
    await engine.start(version_folder(run.store, 3), 3, None)
    assert engine.weights_version == 3
