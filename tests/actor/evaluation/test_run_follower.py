"""An evaluator's connection to a learner: the real weight server, and a coordinator that says what a test wants."""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch

from actor.evaluation.run_follower import RunFollower
from actor.learner_link import LearnerLink
from actor.weights.cache import default_cache_folder
from dcpo_async.errors import RefusedError
from dcpo_async.protocol.messages import Bye, Envelope, Heartbeat, Hello, Message, Reject, VersionMessage
from dcpo_async.transport.zmq_channel import RouterChannel, connecting
from dcpo_async.weights.locks import is_unused, opened
from dcpo_async.weights.manifest import Manifest
from dcpo_async.weights.places import version_folder, versions
from dcpo_async.weights.store import write_snapshot
from learner.weights.server import serve
from tests.protocol.made_session import WELCOME

MAX_BYTES = 1 << 30


class Learner:
    """Publishes versions, welcomes whoever says hello, and keeps what it hears."""

    def __init__(self, store: Path) -> None:
        self.store, self.run_id = store, f"run-{uuid.uuid4().hex[:8]}"
        self.coordinator = RouterChannel("tcp://127.0.0.1:0", MAX_BYTES)
        self.weights = RouterChannel("tcp://127.0.0.1:0", MAX_BYTES)
        self.heard: list[Message] = []
        self.has_heard_bye = asyncio.Event()
        self.refusal: Reject | None = None
        self._peers: set[bytes] = set()
        self._newest = VersionMessage(weights_version=0, step=0)

    async def run(self) -> None:
        serving = asyncio.create_task(serve(self.weights, self.store, self.run_id))
        try:
            while True:
                for received in await self.coordinator.receive(1.0):
                    assert isinstance(received.envelope, Envelope)
                    self._peers.add(received.peer)
                    self.heard.append(received.envelope.message)
                    await self._answer(received.peer, received.envelope.message)
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    async def _answer(self, peer: bytes, message: Message) -> None:
        welcome = WELCOME.model_copy(
            update={"weights_port": self.weights.port, "weights_version": self._newest.weights_version}
        )
        match message:
            case Hello():
                await self.say(peer, self.refusal or welcome)
            case Heartbeat():
                await self.say(peer, self._newest)
            case Bye():
                self.has_heard_bye.set()

    async def say(self, peer: bytes, message: Message) -> None:
        await self.coordinator.send(peer, Envelope(message, {}, self.run_id, 1))

    async def say_to_all(self, message: Message) -> None:
        for peer in self._peers:
            await self.say(peer, message)

    async def publish(self, version: int, step: int) -> None:
        skeleton = self.store.parent / "skeleton"
        skeleton.mkdir(exist_ok=True)
        (skeleton / "config.json").write_text("{}")
        write_snapshot(
            self.store,
            weights_version=version,
            run_id=self.run_id,
            incarnation=1,
            step=step,
            tensors={"w": torch.zeros(3) + version},
            skeleton_folder=skeleton,
        )
        self._newest = VersionMessage(weights_version=version, step=step)
        await self.say_to_all(self._newest)

    def follower(self) -> RunFollower:
        address = f"tcp://127.0.0.1:{self.coordinator.port}"
        connect = connecting(None, insecure=False)
        return RunFollower(LearnerLink(connect, address, engine="scripted", role="evaluator", join_seconds=5.0))


@asynccontextmanager
async def learning(tmp_path: Path) -> AsyncIterator[Learner]:
    learner = Learner(tmp_path / "store")
    running = asyncio.create_task(learner.run())
    try:
        yield learner
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        learner.coordinator.close()
        learner.weights.close()


async def next_manifest(follower: RunFollower, from_step: int = 0) -> Manifest:
    found = await asyncio.wait_for(follower.next_weights(from_step), 5.0)
    assert found is not None
    assert found[0].is_dir()
    return found[1]


async def test_it_joins_as_an_evaluator_asks_for_no_lease_and_says_bye(tmp_path: Path) -> None:
    async with learning(tmp_path) as learner:
        await learner.publish(1, step=0)
        async with learner.follower() as follower:
            assert await follower.joined() == WELCOME.model_copy(
                update={"weights_port": learner.weights.port, "weights_version": 1}
            )
            assert (await next_manifest(follower)).weights_version == 1
        await asyncio.wait_for(learner.has_heard_bye.wait(), 5.0)
    hello, *others = learner.heard
    assert isinstance(hello, Hello)
    assert hello.role == "evaluator"
    assert {type(message) for message in others} == {Heartbeat, Bye}


def in_use(store: Path) -> list[int]:
    """The versions of a store that some process holds."""
    held = []
    for version in versions(store):
        with opened(version_folder(store, version), os.O_RDONLY | os.O_DIRECTORY) as descriptor:
            if not is_unused(descriptor):
                held.append(version)
    return held


async def test_it_takes_the_newest_version_from_a_step_on_and_lets_the_earlier_one_go(tmp_path: Path) -> None:
    async with learning(tmp_path) as learner:
        await learner.publish(1, step=0)
        async with learner.follower() as follower:
            assert (await next_manifest(follower)).step == 0
            await learner.publish(2, step=4)
            await learner.publish(3, step=9)
            assert in_use(learner.store) == [1]
            assert (await next_manifest(follower, from_step=5)).weights_version == 3
            assert in_use(learner.store) == [3]
            early = asyncio.create_task(next_manifest(follower, from_step=15))
            await learner.publish(4, step=14)
            await asyncio.wait({early}, timeout=0.3)
            assert not early.done()
            await learner.publish(5, step=15)
            assert (await early).weights_version == 5
        assert in_use(learner.store) == []
        assert versions(default_cache_folder(learner.run_id)) == []


async def test_the_runs_end_is_an_end_and_no_failure(tmp_path: Path) -> None:
    async with learning(tmp_path) as learner:
        await learner.publish(1, step=0)
        async with learner.follower() as follower:
            await next_manifest(follower)
            await learner.say_to_all(Reject(reason="draining", detail="the run is finished"))
            assert await asyncio.wait_for(follower.next_weights(from_step=1), 5.0) is None


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        (Reject(reason="run_id", detail="no evaluators here"), "no evaluators here"),
        (Reject(reason="draining", detail="the run is finished"), "is over; name its folder export/ as the model"),
    ],
)
async def test_a_learner_that_takes_nobody_is_told(tmp_path: Path, refusal: Reject, said: str) -> None:
    async with learning(tmp_path) as learner:
        learner.refusal = refusal
        async with learner.follower() as follower:
            with pytest.raises(RefusedError, match=said):
                await follower.joined()
