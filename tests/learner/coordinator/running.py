"""A running coordinator over in-memory channels, and peers that say what a test wants."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from dcpo_async.config import RunConfig
from dcpo_async.metrics.jsonl import MetricsWriter
from dcpo_async.protocol.conversion import lease_from_message
from dcpo_async.protocol.messages import (
    Ack,
    Array,
    Envelope,
    Heartbeat,
    LeaseMessage,
    Message,
    VersionMessage,
    Want,
    Welcome,
)
from dcpo_async.protocol.trainer_messages import (
    Published,
    PublishedAck,
    TrainerHello,
    VersionGrant,
    VersionWant,
)
from dcpo_async.records import Lease, LeaseName
from dcpo_async.transport.memory_channel import MemoryDealer, MemoryNetwork, MemoryRouter
from learner.coordinator.coordinator import Coordinator
from learner.coordinator.intake import Intake
from learner.evaluations.problems import HeldOut
from tests.learner.small_run import answer
from tests.protocol.made_session import hello

M = TypeVar("M", bound=Message)


class Peer:
    """A dealer that says what a test wants it to say."""

    def __init__(self, network: MemoryNetwork, name: str, run_id: str = "", incarnation: int = 0) -> None:
        self.name, self.run_id, self.incarnation = name, run_id, incarnation
        self.channel: MemoryDealer = network.dealer(name.encode())
        self.num_received = 0

    async def say(self, message: Message, arrays: dict[str, Array] | None = None) -> None:
        if isinstance(message, Want):
            message = message.model_copy(update={"num_received": self.num_received})
        await self.channel.send(Envelope(message, arrays or {}, self.run_id, self.incarnation))

    async def hear(self, kind: type[M], within_seconds: float = 5.0) -> M:
        """The next message, which must be of this kind."""
        return await self.hear_envelope(kind, within_seconds)  # type: ignore[return-value]

    async def hear_envelope(self, kind: type[Message], within_seconds: float = 5.0) -> Message:
        self.envelope = await self.channel.receive(within_seconds)
        assert self.envelope is not None, f"{self.name} heard nothing, expected {kind.kind}"
        assert isinstance(self.envelope.message, kind), self.envelope.message
        self.incarnation = self.envelope.incarnation
        return self.envelope.message

    async def hears_nothing(self) -> bool:
        return await self.channel.receive(0.05) is None

    async def announce(self, weights_version: int, step: int) -> None:
        """Tell that a version stands, as the publisher does."""
        await self.say(Published(weights_version=weights_version, step=step))
        assert await self.hear(PublishedAck) == PublishedAck(weights_version=weights_version, step=step)

    async def lease(self) -> Lease:
        message = await self.hear(LeaseMessage)
        self.num_received = message.number
        assert self.envelope is not None
        return lease_from_message(message, self.envelope.arrays)

    async def join(self, held: tuple[LeaseName, ...] = ()) -> Welcome:
        await self.say(hello(self.name, held=held))
        return await self.hear(Welcome)

    async def send_group(self, lease: Lease, version: int = 1, rewards: tuple[float, ...] = (1.0, 0.0)) -> None:
        group = answer(lease, version, rewards)
        await self.channel.send(Envelope(group.message, group.arrays, self.run_id, self.incarnation))


class Learner:
    """A running coordinator with its two networks and a clock that only a test moves."""

    def __init__(
        self,
        config: RunConfig,
        open_intake: Callable[[RunConfig], Intake],
        router: Callable[..., MemoryRouter] | None = None,
        held_out: HeldOut | None = None,
    ) -> None:
        self.now: float | None = 1000.0
        self.actors, self.ranks = MemoryNetwork(), MemoryNetwork()
        config = config.model_copy(update={"model": config.model.model_copy(update={"dtype": "float32"})})
        self.intake = open_intake(config)
        self.coordinator = Coordinator(
            config,
            "run",
            self.intake,
            self.intake.ledger,
            router(self.actors, self.intake.ledger) if router else self.actors.router(),
            self.ranks.router(),
            weights_port=5558,
            sinks=[MetricsWriter(config.folder)],
            held_out=held_out,
            clock=lambda: time.monotonic() if self.now is None else self.now,
        )

    def wait(self, seconds: float) -> None:
        """Move the clock; `now = None` lets it run."""
        assert self.now is not None
        self.now += seconds

    def actor(self, name: str = "a") -> Peer:
        return Peer(self.actors, name)

    def rank(self, name: str = "rank-0") -> Peer:
        return Peer(self.ranks, name, "run", self.intake.ledger.incarnation)

    async def publish(self, step: int = 0) -> Peer:
        """A rank 0 that has joined and published the state after `step`."""
        rank = self.rank()
        await rank.say(TrainerHello(rank=0, num_ranks=1, step=step))
        await rank.say(VersionWant(step=step))
        grant = await rank.hear(VersionGrant)
        await rank.announce(grant.weights_version, step)
        return rank


@asynccontextmanager
async def learning(
    config: RunConfig,
    open_intake: Callable[[RunConfig], Intake],
    router: Callable[..., MemoryRouter] | None = None,
    held_out: HeldOut | None = None,
) -> AsyncIterator[Learner]:
    learner = Learner(config, open_intake, router, held_out)
    task = asyncio.create_task(learner.coordinator.run())
    try:
        yield learner
    finally:
        learner.coordinator.has_ended = True
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def name_of(lease: Lease) -> LeaseName:
    return LeaseName(position=lease.position, attempt=lease.attempt)


def heartbeat(*held: LeaseName, tokens: int = 0) -> Heartbeat:
    return Heartbeat(
        held=held,
        tokens=(0,) * len(held),
        weights_version=1,
        tokens_generated=tokens,
        groups_in_flight=len(held),
    )


async def holding_one_lease(learner: Learner, name: str = "a") -> tuple[Peer, Lease]:
    await learner.publish()
    actor = learner.actor(name)
    await actor.join()
    await actor.say(Want(num_leases=1))
    if not learner.intake.versions.published:
        await actor.hear(VersionMessage)
    return actor, await actor.lease()


async def trained_once(learner: Learner, num_groups: int) -> Peer:
    """Rank 0, with everything answered that is needed for a step of `num_groups`."""
    rank = await learner.publish()
    actor = learner.actor()
    await actor.join()
    await actor.say(Want(num_leases=num_groups))
    for _ in range(num_groups):
        await actor.send_group(await actor.lease())
    for _ in range(num_groups):
        await actor.hear(Ack)
    return rank


async def until(happened: Callable[[], bool]) -> None:
    for _ in range(500):
        if happened():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen within 5 s")
