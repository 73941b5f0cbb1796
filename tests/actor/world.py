"""A learner and its actors in one process: real coordinator, weight server and actor; channels in memory."""

import asyncio
import shutil
import uuid
from pathlib import Path

import torch

from actor.engine.scripted import ScriptedEngine
from actor.learner_link import LearnerLink
from actor.service import ActorService
from actor.weights.cache import default_cache_folder
from actor.weights_follower import WeightsFollower, WeightsPlan
from dcpo_async.config import RunConfig
from dcpo_async.grading import InlineGrading
from dcpo_async.protocol.messages import Welcome
from dcpo_async.protocol.trainer_messages import TrainerHello, VersionGrant, VersionWant
from dcpo_async.transport.interfaces import Dealer
from dcpo_async.transport.memory_channel import MemoryNetwork
from dcpo_async.weights.canary import Canary
from dcpo_async.weights.places import version_folder
from dcpo_async.weights.store import write_snapshot
from learner.coordinator.coordinator import Coordinator
from learner.coordinator.intake import Intake
from learner.evaluations.problems import HeldOut
from learner.ledger.ledger import Ledger
from learner.weights.server import serve
from tests.learner.coordinator.running import Peer
from tests.learner.small_run import VOCAB_SIZE, make_config, make_prompts

ADDRESS, WEIGHTS_ADDRESS, WEIGHTS_PORT = "memory:5557", "memory:5558", 5558
QUICK = {"heartbeat_seconds": 0.05, "silence_seconds": 0.4}


class World:
    """A learner that can be stopped and started again, and whatever actors join it."""

    def __init__(self, folder: Path, **sections: dict[str, object]) -> None:
        settings = make_config(folder, network=QUICK, **sections)
        model = settings.model.model_copy(update={"dtype": "float32"})
        self.prompts = make_prompts(16)
        self.config: RunConfig = settings.model_copy(update={"model": model})
        self.held_out = HeldOut()
        self.run_id = f"run-{uuid.uuid4().hex[:8]}"
        self.networks = {ADDRESS: MemoryNetwork(), WEIGHTS_ADDRESS: MemoryNetwork()}
        self.ranks = MemoryNetwork()
        self.store, self.skeleton = folder / "weights", folder / "skeleton"
        self.skeleton.mkdir()
        (self.skeleton / "config.json").write_text(f'{{"vocab_size": {VOCAB_SIZE}, "eos_token_id": 2}}')

    async def __aenter__(self) -> "World":
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def start(self) -> None:
        """Start the learner, on the ledger that an earlier start has left."""
        self.ledger = Ledger(self.config.folder / "ledger")
        self.intake = Intake(self.config, self.prompts, VOCAB_SIZE, self.ledger)
        routers = self.networks[ADDRESS].router(), self.ranks.router()
        self.coordinator = Coordinator(
            self.config,
            self.run_id,
            self.intake,
            self.ledger,
            *routers,
            weights_port=WEIGHTS_PORT,
            held_out=self.held_out,
        )
        weights = self.networks[WEIGHTS_ADDRESS].router()
        parts = (self.coordinator.run(), serve(weights, self.store, self.run_id))
        self._running = [asyncio.create_task(part) for part in parts]
        self._routers = (*routers, weights)

    async def stop(self) -> None:
        """End the learner without a word to anybody, as SIGKILL does."""
        for part in self._running:
            part.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        for router in self._routers:
            router.close()
        self.ledger.abandon()
        shutil.rmtree(default_cache_folder(self.run_id), ignore_errors=True)

    async def publish(self, step: int, canary: Canary | None = None, *, is_spoilt: bool = False) -> int:
        """Publish weights of a step as rank 0 does, one byte of them wrong on the disk if asked; their version."""
        rank = Peer(self.ranks, "rank-0", self.run_id, self.ledger.incarnation)
        await rank.say(TrainerHello(rank=0, num_ranks=1, step=step))
        await rank.say(VersionWant(step=step))
        version = (await rank.hear(VersionGrant)).weights_version
        write_snapshot(
            self.store,
            weights_version=version,
            run_id=self.run_id,
            incarnation=self.ledger.incarnation,
            step=step,
            tensors={"w": torch.zeros(3) + step},
            skeleton_folder=self.skeleton,
            canary=canary,
        )
        if is_spoilt:
            self.spoil(version)
        await rank.announce(version, step)
        return version

    async def stop_weight_server(self) -> None:
        """From now on nobody answers who asks for weights."""
        self._running[1].cancel()
        await asyncio.gather(self._running[1], return_exceptions=True)

    def spoil(self, version: int) -> None:
        """Turn the bits of a byte of a version on the disk; once more, and it is whole again."""
        path = version_folder(self.store, version) / "model.safetensors"
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 255]))

    def restart_with(self, **sections: dict[str, object]) -> None:
        """Start the learner again, once it was stopped, with some settings changed."""
        changed = {name: getattr(self.config, name).model_copy(update=values) for name, values in sections.items()}
        self.config = self.config.model_copy(update=changed)
        self.start()

    def actor(
        self, engine: ScriptedEngine | None = None, join_seconds: float = 5.0, plan: WeightsPlan | None = None
    ) -> ActorService:
        """An actor that has not begun to serve; its engine answers at once unless one is given."""
        made = engine or ScriptedEngine()
        link = LearnerLink(self._connect, ADDRESS, engine="scripted", join_seconds=join_seconds)
        weights = WeightsFollower(link, lambda: None, plan or WeightsPlan())
        return ActorService(link, lambda welcome: made, grading_of, weights)

    def _connect(self, address: str) -> Dealer:
        return self.networks[address].dealer(uuid.uuid4().bytes)


def grading_of(welcome: Welcome) -> InlineGrading:
    return InlineGrading(welcome.grading.extraction)
