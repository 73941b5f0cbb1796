"""The real publisher process, killed wherever it happens to be."""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dcpo_async.config import RunConfig
from dcpo_async.errors import ProtocolError
from dcpo_async.processes import kill_group, last_lines, module_argv, spawn
from dcpo_async.protocol.messages import Envelope
from dcpo_async.protocol.trainer_messages import Published, PublishedAck, VersionGrant, VersionWant
from dcpo_async.transport.zmq_channel import RouterChannel
from dcpo_async.weights.places import UNFINISHED, version_folder, versions
from dcpo_async.weights.store import read_manifest, verify
from learner.weights.buffers import SharedBuffers
from learner.weights.layout import Layout, Place, Schema, TensorView
from tests.tmpfs import resize, small_disk

pytestmark = pytest.mark.system

NUM_FLOATS = 2_000_000
LAYOUT = Layout(places={"x": Place(dtype="float32", shape=(NUM_FLOATS,), start=0)}, num_bytes=4 * NUM_FLOATS)


class Trainer:
    """Offers states whose numbers are their step, and grants and hears of versions as the coordinator does."""

    def __init__(self, folder: Path, buffers: list[Path]) -> None:
        self.config = RunConfig(folder=folder / "run")
        self.config.folder.mkdir(exist_ok=True)
        (self.config.folder / "skeleton").mkdir()
        (self.config.folder / "skeleton" / "config.json").write_text("{}")
        (self.config.folder / "config.json").write_text(self.config.model_dump_json())
        self.address, self.buffers = f"ipc://{folder}/ranks", buffers
        self.channel = RouterChannel(self.address, 1 << 20)
        self.shared = SharedBuffers(buffers)
        for buffer in self.shared.buffers:
            buffer.prepare(Schema(layout=LAYOUT, views={"x": TensorView("x", (NUM_FLOATS,), (1,), 0)}, tied={}))
        self.granted = 0
        self.is_deaf = False
        self.published: list[Published] = []

    @property
    def store(self) -> Path:
        return self.config.folder / "weights"

    @property
    def log(self) -> str:
        """What the publisher says."""
        return (self.config.folder / "publisher.log").read_text()

    def offer(self, step: int) -> None:
        number = self.shared.claim()
        LAYOUT.tensors(self.shared.buffers[number].state)["x"][:] = step
        self.shared.offer(number, step, None)
        self.shared.buffers[number].unlock()

    async def serve(self) -> None:
        while True:
            for received in await self.channel.receive(0.2):
                assert not isinstance(received.envelope, ProtocolError)
                if isinstance(message := received.envelope.message, Published):
                    if self.is_deaf:
                        continue
                    self.published.append(message)
                    ack = PublishedAck(weights_version=message.weights_version, step=message.step)
                    await self.channel.send(received.peer, Envelope(ack, {}, "run", 1))
                elif isinstance(message, VersionWant):
                    self.granted += 1
                    grant = VersionGrant(weights_version=self.granted, step=message.step)
                    await self.channel.send(received.peer, Envelope(grant, {}, "run", 1))

    @asynccontextmanager
    async def publisher(self) -> AsyncIterator[None]:
        """A publisher process, which is killed at the end."""
        words = ["--config", str(self.config.folder / "config.json"), "--coordinator", self.address]
        words += ["--run-id", "run", "--incarnation", "1", "--buffers", *map(str, self.buffers)]
        process = await spawn(module_argv("learner.publisher", *words), self.config.folder / "publisher.log")
        try:
            yield
        finally:
            kill_group(process)
            await process.wait()

    async def until_told(self, count: int) -> None:
        async with asyncio.timeout(60):
            while len(self.published) < count:  # noqa: ASYNC110 - filled by serve
                await asyncio.sleep(0.005)

    async def until_published(self, step: int) -> None:
        """The coordinator was told, and the mark is set: old versions are removed between the two."""
        async with asyncio.timeout(60):
            while not self.published or self.published[-1].step < step:  # noqa: ASYNC110 - filled by serve
                await asyncio.sleep(0.005)
            while self.shared.published < self.shared.offered:  # noqa: ASYNC110 - another process's words
                await asyncio.sleep(0.005)


@asynccontextmanager
async def trainer_in(folder: Path) -> AsyncIterator[Trainer]:
    descriptors = [os.memfd_create("buffer") for _ in range(2)]
    trainer = Trainer(folder, [Path(f"/proc/{os.getpid()}/fd/{descriptor}") for descriptor in descriptors])
    serving = asyncio.create_task(trainer.serve())
    try:
        yield trainer
    finally:
        serving.cancel()
        trainer.channel.close()
        for descriptor in descriptors:
            os.close(descriptor)


async def test_a_state_is_published_as_it_was_offered(tmp_path: Path) -> None:
    async with trainer_in(tmp_path) as trainer, trainer.publisher():
        for step in range(3):
            trainer.offer(step)
            await trainer.until_published(step)
        assert [(message.weights_version, message.step) for message in trainer.published] == [(1, 0), (2, 1), (3, 2)]
        assert [message.num_skipped for message in trainer.published] == [0, 0, 0]
        folder = version_folder(trainer.store, 3)
        manifest = verify(folder)
        assert (manifest.step, manifest.run_id, manifest.incarnation) == (2, "run", 1)
        assert trainer.published[-1].num_bytes == sum(file.num_bytes for file in manifest.files)
        assert trainer.published[-1].seconds > 0
        assert torch.equal(load_file(folder / "model.safetensors")["x"], torch.full((NUM_FLOATS,), 2.0))


async def test_a_version_has_the_patch_from_the_one_before(tmp_path: Path) -> None:
    async with trainer_in(tmp_path) as trainer, trainer.publisher():
        for step in range(3):
            trainer.offer(1)
            await trainer.until_told(step + 1)
        patches = read_manifest(version_folder(trainer.store, 3)).patches
        assert [(patch.base_version, patch.weights_version) for patch in patches] == [(1, 2), (2, 3)]
        assert [message.patch_bytes for message in trainer.published] == [0, *(patch.num_bytes for patch in patches)]
        assert 0 < patches[-1].num_bytes < 1000


async def test_states_that_are_offered_faster_than_they_can_be_written_are_skipped_and_counted(tmp_path: Path) -> None:
    async with trainer_in(tmp_path) as trainer, trainer.publisher():
        for step in range(200):
            trainer.offer(step)
            await asyncio.sleep(0.002)
        await trainer.until_published(199)
        steps = [message.step for message in trainer.published]
        assert steps == sorted(set(steps))
        assert len(steps) + sum(message.num_skipped for message in trainer.published) == 200
        assert len(steps) < 200
        for version in versions(trainer.store):
            folder = version_folder(trainer.store, version)
            assert load_file(folder / "model.safetensors")["x"].unique().tolist() == [read_manifest(folder).step]


async def test_a_version_that_the_disk_has_no_room_for_is_published_once_it_has(tmp_path: Path) -> None:
    with small_disk(tmp_path / "run", 12) as is_small:
        if not is_small:
            pytest.skip("a tmpfs cannot be mounted here")
        async with trainer_in(tmp_path) as trainer, trainer.publisher():
            trainer.offer(0)
            await trainer.until_published(0)
            trainer.offer(1)
            async with asyncio.timeout(60):
                while "which wait for room" not in trainer.log:  # noqa: ASYNC110 - another process's file
                    await asyncio.sleep(0.05)
            assert versions(trainer.store) == [1]
            assert not list(trainer.store.glob(f"{UNFINISHED}*"))
            trainer.offer(2)
            resize(tmp_path / "run", 64)
            await trainer.until_published(2)
            assert [message.step for message in trainer.published] == [0, 2]
            assert verify(version_folder(trainer.store, versions(trainer.store)[-1])).step == 2


async def test_a_state_counts_as_published_only_once_the_coordinator_has_heard_of_it(tmp_path: Path) -> None:
    async with trainer_in(tmp_path) as trainer:
        trainer.is_deaf = True
        async with trainer.publisher():
            trainer.offer(0)
            async with asyncio.timeout(60):
                while not versions(trainer.store):  # noqa: ASYNC110 - files
                    await asyncio.sleep(0.01)
        assert trainer.shared.published == 0
        trainer.is_deaf = False
        async with trainer.publisher():
            await trainer.until_published(0)
        assert [(message.weights_version, message.step) for message in trainer.published] == [(2, 0)]


async def test_a_publisher_that_is_killed_anywhere_leaves_whole_versions_or_none(tmp_path: Path) -> None:
    generator = random.Random(0)
    async with trainer_in(tmp_path) as trainer:
        step = 0
        for _ in range(4):
            async with trainer.publisher():
                begun = len(trainer.published)
                while len(trainer.published) == begun:
                    trainer.offer(step := step + 1)
                    await asyncio.sleep(0.002)
                # Anywhere within the versions that follow.
                ends_at = asyncio.get_running_loop().time() + generator.uniform(0, 0.1)
                while asyncio.get_running_loop().time() < ends_at:
                    trainer.offer(step := step + 1)
                    await asyncio.sleep(0.001)
            for version in versions(trainer.store):
                verify(version_folder(trainer.store, version))
        async with trainer.publisher():
            if trainer.shared.published < trainer.shared.offered:
                # Whatever was told of or not, the newest state is published, without another one behind it.
                await trainer.until_published(step)
            trainer.offer(step := step + 1)
            await trainer.until_published(step)
            assert not list(trainer.store.glob(f"{UNFINISHED}*"))
        told = {message.weights_version for message in trainer.published}
        assert versions(trainer.store)[-1] in told, last_lines(trainer.config.folder / "publisher.log")
