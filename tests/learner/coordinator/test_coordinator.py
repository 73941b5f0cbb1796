"""The coordinator over real in-memory channels: what actors and trainer ranks are told, and when."""

import asyncio
import json
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from dcpo_async.algorithm import RewardStats
from dcpo_async.config import RunConfig
from dcpo_async.errors import LedgerError, PeerLostError, ProtocolError, VersionMismatchError
from dcpo_async.metrics.jsonl import read_metrics
from dcpo_async.protocol.conversion import group_from_message, lease_from_message
from dcpo_async.protocol.messages import (
    Ack,
    Array,
    Bye,
    Checkpointed,
    Envelope,
    GroupMessage,
    Heartbeat,
    Hello,
    LeaseFailed,
    LeaseMessage,
    LeaseName,
    Message,
    OldLogprobs,
    Published,
    Reject,
    ShardMessage,
    ShardWant,
    StepDone,
    TrainerFinished,
    TrainerHello,
    VersionGrant,
    VersionMessage,
    VersionWant,
    Want,
    Welcome,
)
from dcpo_async.protocol.session import ActorSession, LeaseGranted
from dcpo_async.records import Lease
from dcpo_async.transport.interfaces import Received
from dcpo_async.transport.memory_channel import Faults, MemoryDealer, MemoryNetwork, MemoryRouter
from learner.coordinator.coordinator import Coordinator, TokenRate
from learner.coordinator.intake import Intake
from learner.ledger.ledger import Ledger
from learner.ledger.reader import StoredGroup
from learner.trainer.coordinator_link import samples_of
from tests.learner.small_run import VOCAB_SIZE, OpenIntake, answer, make_config, make_intake, make_prompts

M = TypeVar("M", bound=Message)


class Peer:
    """A dealer that says what a test wants it to say."""

    def __init__(self, network: MemoryNetwork, name: str, run_id: str = "") -> None:
        self.name, self.run_id = name, run_id
        self.channel: MemoryDealer = network.dealer(name.encode())

    async def say(self, message: Message, arrays: dict[str, Array] | None = None) -> None:
        await self.channel.send(Envelope(message, arrays or {}, self.run_id, 0))

    async def hear(self, kind: type[M], within_seconds: float = 5.0) -> M:
        """The next message, which must be of this kind."""
        return await self.hear_envelope(kind, within_seconds)  # type: ignore[return-value]

    async def hear_envelope(self, kind: type[Message], within_seconds: float = 5.0) -> Message:
        self.envelope = await self.channel.receive(within_seconds)
        assert self.envelope is not None, f"{self.name} heard nothing, expected {kind.kind}"
        assert isinstance(self.envelope.message, kind), self.envelope.message
        return self.envelope.message

    async def hears_nothing(self) -> bool:
        return await self.channel.receive(0.05) is None

    async def lease(self) -> Lease:
        message = await self.hear(LeaseMessage)
        assert self.envelope is not None
        return lease_from_message(message, self.envelope.arrays)

    async def join(self, held: tuple[LeaseName, ...] = ()) -> Welcome:
        await self.say(Hello(session_id=self.name, host="here", engine="scripted", held=held))
        return await self.hear(Welcome)

    async def send_group(self, lease: Lease, version: int = 1, rewards: tuple[float, ...] = (1.0, 0.0)) -> None:
        group = answer(lease, version, rewards)
        await self.channel.send(Envelope(group.message, group.arrays, self.run_id, 0))


class Learner:
    """A running coordinator with its two networks and a clock that only a test moves."""

    def __init__(
        self,
        config: RunConfig,
        open_intake: Callable[[RunConfig], Intake],
        router: Callable[..., MemoryRouter] | None = None,
    ) -> None:
        self.now: float | None = 1000.0
        self.actors, self.ranks = MemoryNetwork(), MemoryNetwork()
        self.intake = open_intake(config)
        self.coordinator = Coordinator(
            config,
            "run",
            self.intake,
            router(self.actors, self.intake.ledger) if router else self.actors.router(),
            self.ranks.router(),
            weights_port=5558,
            dtype="float32",
            clock=lambda: time.monotonic() if self.now is None else self.now,
        )

    def wait(self, seconds: float) -> None:
        """Move the clock; `now = None` lets it run."""
        assert self.now is not None
        self.now += seconds

    def actor(self, name: str = "a") -> Peer:
        return Peer(self.actors, name)

    def rank(self, name: str = "rank-0") -> Peer:
        return Peer(self.ranks, name, "run")

    async def publish(self, step: int = 0) -> Peer:
        """A rank 0 that has joined and published the state after `step`."""
        rank = self.rank()
        await rank.say(TrainerHello(rank=0, num_ranks=1, step=step))
        await rank.say(VersionWant(step=step))
        grant = await rank.hear(VersionGrant)
        await rank.say(Published(weights_version=grant.weights_version, step=step))
        return rank


@asynccontextmanager
async def learning(
    config: RunConfig, open_intake: Callable[[RunConfig], Intake], router: Callable[..., MemoryRouter] | None = None
) -> AsyncIterator[Learner]:
    learner = Learner(config, open_intake, router)
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
    return Heartbeat(held=held, weights_version=1, tokens_generated=tokens, groups_in_flight=len(held))


# ---- actors


async def test_an_actor_learns_the_run_when_it_joins(tmp_path: Path, open_intake: OpenIntake) -> None:
    async with learning(make_config(tmp_path, sampling={"temperature": 0.7}), open_intake) as learner:
        actor = learner.actor()
        welcome = await actor.join()
        assert (welcome.group_size, welcome.temperature, welcome.weights_port) == (2, 0.7, 5558)
        assert welcome.weights_version == 0
        assert actor.envelope is not None
        assert (actor.envelope.run_id, actor.envelope.incarnation) == ("run", 1)


async def test_leases_are_granted_up_to_the_credit_once_weights_are_published(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        actor = learner.actor()
        await actor.join()
        await actor.say(Want(num_leases=3))
        assert await actor.hears_nothing()
        await learner.publish()
        assert (await actor.hear(VersionMessage)).weights_version == 1
        assert [(await actor.lease()).position for _ in range(3)] == [0, 1, 2]
        assert await actor.hears_nothing()


async def test_two_hungry_actors_take_turns(tmp_path: Path, open_intake: OpenIntake) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        first, second = learner.actor("a"), learner.actor("b")
        for actor in (first, second):
            await actor.join()
            await actor.say(Want(num_leases=2))
        await learner.publish()
        for actor in (first, second):
            await actor.hear(VersionMessage)
        assert [(await first.lease()).position, (await second.lease()).position] == [0, 1]
        assert [(await first.lease()).position, (await second.lease()).position] == [2, 3]


async def test_a_group_is_acknowledged_and_its_repetition_too(tmp_path: Path, open_intake: OpenIntake) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        actor, lease = await holding_one_lease(learner)
        for outcome in ("accepted", "duplicate", "duplicate"):
            await actor.send_group(lease)
            assert (await actor.hear(Ack)).outcome == outcome
        assert learner.intake.ledger.num_groups() == 1


async def test_a_group_that_dynamic_sampling_discards_is_acknowledged_and_its_repetition_too(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    config = make_config(tmp_path, algorithm={"dynamic_sampling": True}, actor={"regrade_share": 1.0})
    async with learning(config, open_intake) as learner:
        actor, lease = await holding_one_lease(learner)
        for outcome in ("accepted", "duplicate"):
            await actor.send_group(lease, rewards=(1.0, 1.0))
            assert (await actor.hear(Ack)).outcome == outcome
        assert learner.intake.counts["groups_discarded"] == 1


async def holding_one_lease(learner: Learner, name: str = "a") -> tuple[Peer, Lease]:
    await learner.publish()
    actor = learner.actor(name)
    await actor.join()
    await actor.say(Want(num_leases=1))
    if not learner.intake.published:
        await actor.hear(VersionMessage)
    return actor, await actor.lease()


async def test_an_unsound_group_is_refused_and_its_lease_goes_out_again(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        actor, lease = await holding_one_lease(learner)
        await actor.send_group(lease, version=77)
        ack = await actor.hear(Ack)
        assert ack.outcome == "invalid"
        assert "weights versions [77] were never published" in ack.detail
        await actor.say(Want(num_leases=1))
        again = await actor.lease()
        assert (again.position, again.attempt) == (lease.position, 2)


async def test_a_failed_lease_goes_out_again_first(tmp_path: Path, open_intake: OpenIntake) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        actor, lease = await holding_one_lease(learner)
        failure = LeaseFailed(position=lease.position, attempt=1, reason="engine died", is_prompts_fault=False)
        await actor.say(failure)
        await actor.say(Want(num_leases=2))
        assert [((await actor.lease()).position) for _ in range(2)] == [0, 1]


async def test_a_silent_actor_loses_its_leases_to_the_next(tmp_path: Path, open_intake: OpenIntake) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        _, lease = await holding_one_lease(learner)
        learner.wait(16.0)
        await until(lambda: learner.intake.counts["leases_released"] == 1)
        other = learner.actor("b")
        await other.join()
        await other.say(Want(num_leases=1))
        again = await other.lease()
        assert (again.position, again.attempt) == (lease.position, 2)


async def test_an_actor_that_only_heartbeats_keeps_its_leases_and_hears_that_the_learner_lives(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        actor, lease = await holding_one_lease(learner)
        for _ in range(4):
            learner.wait(10.0)
            await actor.say(heartbeat(name_of(lease)))
            assert await actor.hear(VersionMessage) == VersionMessage(weights_version=1, step=0)
        await actor.send_group(lease)
        assert (await actor.hear(Ack)).outcome == "accepted"


async def test_a_lease_that_heartbeats_do_not_list_goes_out_again(tmp_path: Path, open_intake: OpenIntake) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        actor, lease = await holding_one_lease(learner)
        for _ in range(2):
            learner.wait(10.0)
            await actor.say(heartbeat())
            await actor.hear(VersionMessage)
        await until(lambda: learner.intake.counts["leases_released"] == 1)
        await actor.say(Want(num_leases=1))
        again = await actor.lease()
        assert (again.position, again.attempt) == (lease.position, 2)


async def test_a_leaving_actor_gives_its_leases_back_at_once(tmp_path: Path, open_intake: OpenIntake) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        actor, lease = await holding_one_lease(learner)
        await actor.say(Bye(reason="asked to end"))
        other = learner.actor("b")
        await other.join()
        await other.say(Want(num_leases=1))
        assert (await other.lease()).position == lease.position
        assert list(learner.coordinator.sessions) == [b"b"]


async def test_an_unknown_session_is_asked_to_join_again(tmp_path: Path, open_intake: OpenIntake) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        actor = learner.actor()
        for message in (Want(num_leases=1), heartbeat()):
            await actor.say(message)
            assert (await actor.hear(Reject)).reason == "rejoin"
        assert learner.coordinator.sessions == {}


async def test_after_a_restart_an_actor_joins_again_with_its_leases_and_nothing_is_generated_twice(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        _, lease = await holding_one_lease(learner)
    learner.intake.ledger.close()
    async with learning(make_config(tmp_path), open_intake) as learner:
        actor = learner.actor()
        await actor.send_group(lease)
        assert (await actor.hear(Reject)).reason == "rejoin"
        await actor.join(held=(name_of(lease),))
        for _ in range(3):
            learner.wait(10.0)
            await actor.say(heartbeat(name_of(lease)))
            assert (await actor.hear(VersionMessage)).weights_version == 0
        await actor.send_group(lease)
        assert (await actor.hear(Ack)).outcome == "accepted"


async def test_an_actor_of_another_run_is_refused_in_words(tmp_path: Path, open_intake: OpenIntake) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        stranger = Peer(learner.actors, "a", run_id="another")
        await stranger.say(Hello(session_id="a", host="here", engine="scripted"))
        reject = await stranger.hear(Reject)
        assert reject.reason == "run_id"
        assert "this learner is on run run, the peer on run another" in reject.detail


async def test_a_message_that_only_trainers_send_is_refused(tmp_path: Path, open_intake: OpenIntake) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        actor = learner.actor()
        await actor.join()
        await actor.say(StepDone(step=1, metrics={}))
        reject = await actor.hear(Reject)
        assert (reject.reason, reject.detail) == ("invalid", "an actor does not send step_done")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ProtocolError("a header that is not msgpack"), "invalid"),
        (VersionMismatchError("upgrade the peer", peer_version=0, kind="hello"), "protocol_version"),
    ],
)
async def test_what_cannot_be_read_is_refused_with_its_reason(
    tmp_path: Path, open_intake: OpenIntake, error: ProtocolError, reason: str
) -> None:
    class Garbled(MemoryRouter):
        """Whatever is sent to it cannot be read."""

        async def receive(self, timeout_seconds: float) -> list[Received]:
            return [Received(got.peer, error) for got in await super().receive(timeout_seconds)]

    async with learning(make_config(tmp_path), open_intake, lambda network, _: Garbled(network)) as learner:
        actor = learner.actor()
        await actor.say(heartbeat())
        reject = await actor.hear(Reject)
        assert (reject.reason, reject.detail) == (reason, str(error))


async def test_when_the_run_ends_every_actor_is_told(tmp_path: Path, open_intake: OpenIntake) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        actor = learner.actor()
        await actor.join()
        await learner.coordinator.end("the run is finished")
        reject = await actor.hear(Reject)
        assert (reject.reason, reject.detail) == ("draining", "the run is finished")


# ---- durability


async def test_no_lease_and_no_acknowledgement_leaves_before_it_is_durable(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    witnessed: list[str] = []

    class Witness(MemoryRouter):
        """Before it sends, opens a copy of the ledger as kill -9 would leave it, and looks the message up."""

        def __init__(self, network: MemoryNetwork, ledger: Ledger) -> None:
            super().__init__(network)
            self.ledger = ledger

        async def send(self, peer: bytes, envelope: Envelope) -> None:
            message, copy = envelope.message, tmp_path / f"copy-{len(witnessed)}"
            if isinstance(message, Ack | LeaseMessage):
                shutil.copytree(self.ledger.folder, copy)
                survivor = Ledger(copy)
                visit = survivor.visit(message.position)
                assert visit is not None
                assert visit.attempt == message.attempt
                if isinstance(message, Ack):
                    assert survivor.read_group(message.position).rewards == (1.0, 0.0)
                    assert survivor.reward_stats(visit.prompt_id).visits == 1
                survivor.close()
                witnessed.append(message.kind)
            await super().send(peer, envelope)

    async with learning(make_config(tmp_path), open_intake, Witness) as learner:
        actor, lease = await holding_one_lease(learner)
        await actor.send_group(lease)
        assert (await actor.hear(Ack)).outcome == "accepted"
        await actor.send_group(lease)
        assert (await actor.hear(Ack)).outcome == "duplicate"
    assert witnessed == ["lease", "ack", "ack"]


async def test_a_failure_within_a_change_commits_nothing_of_it(tmp_path: Path, open_intake: OpenIntake) -> None:
    class Broken(Ledger):
        def accept(self, group: StoredGroup, prompt_id: str, stats: RewardStats, weights_step: int) -> None:
            super().accept(group, prompt_id, stats, weights_step)
            raise ArithmeticError("after the rows, before the end")

    config = make_config(tmp_path)
    broken = Intake(config, make_prompts(16), VOCAB_SIZE, Broken(tmp_path / "ledger"))
    learner = Learner(config, lambda _: broken)
    run = asyncio.create_task(learner.coordinator.run())
    actor, lease = await holding_one_lease(learner)
    await actor.send_group(lease)
    with pytest.raises(ArithmeticError):
        await run
    with pytest.raises(LedgerError):
        broken.ledger.commit()
    again = open_intake(config)
    assert again.ledger.num_groups() == 0
    assert again.ledger.reward_stats(lease.prompt_id).visits == 0


async def test_an_actor_that_cannot_be_reached_loses_its_leases(tmp_path: Path, open_intake: OpenIntake) -> None:
    class Unreachable(MemoryRouter):
        async def send(self, peer: bytes, envelope: Envelope) -> None:
            if isinstance(envelope.message, LeaseMessage) and peer == b"a":
                raise PeerLostError("peer a is not connected")
            await super().send(peer, envelope)

    async with learning(make_config(tmp_path), open_intake, lambda network, _: Unreachable(network)) as learner:
        await learner.publish()
        gone, other = learner.actor("a"), learner.actor("b")
        await gone.join()
        await gone.say(Want(num_leases=1))
        await other.join()
        await other.say(Want(num_leases=1))
        assert (await other.lease()).position in (0, 1)
        await other.say(Want(num_leases=1))
        positions = {slot.position: slot.holder for slot in learner.intake.table.open_slots}
        await other.lease()
        assert b"a" not in positions.values()
        assert list(learner.coordinator.sessions) == [b"b"]


# ---- trainer ranks


async def test_a_shard_waits_until_its_batch_stands(tmp_path: Path, open_intake: OpenIntake) -> None:
    async with learning(make_config(tmp_path, groups_per_step=1), open_intake) as learner:
        rank = await learner.publish()
        await rank.say(ShardWant(rank=0, num_ranks=1, step=0))
        assert await rank.hears_nothing()
        actor = learner.actor()
        await actor.join()
        await actor.say(Want(num_leases=1))
        await actor.send_group(await actor.lease())
        shard = await rank.hear(ShardMessage)
        assert (shard.step, shard.positions, shard.indices) == (0, (0, 0), (0, 1))
        assert shard.advantages == pytest.approx((0.5**0.5, -(0.5**0.5)))
        assert shard.token_weights == (1 / 4, 1 / 4)


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


async def test_two_ranks_share_a_step_and_the_same_question_has_the_same_answer(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with learning(make_config(tmp_path, groups_per_step=2), open_intake) as learner:
        await trained_once(learner, 2)
        shards = []
        for number in (0, 1, 1):
            rank = learner.rank(f"rank-{number}")
            await rank.say(ShardWant(rank=number, num_ranks=2, step=0))
            await rank.hear(ShardMessage)
            assert rank.envelope is not None
            shards.append([(sample.position, sample.index) for sample in samples_of(rank.envelope)])
        assert shards[1] == shards[2]
        assert sorted(shards[0] + shards[1]) == [(0, 0), (0, 1), (1, 0), (1, 1)]


async def test_a_step_leaves_one_line_of_metrics_with_those_of_its_batch(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with learning(make_config(tmp_path, groups_per_step=1), open_intake) as learner:
        rank = await trained_once(learner, 1)
        await rank.say(ShardWant(rank=0, num_ranks=1, step=0))
        await rank.hear(ShardMessage)
        for _ in range(2):
            await rank.say(StepDone(step=1, metrics={"loss": 0.25}))
        await until(lambda: learner.coordinator.training.step == 1)
        await rank.say(VersionWant(step=1))
        await rank.hear(VersionGrant)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 1
    (line,) = read_metrics(tmp_path)
    assert (line["step"], line["loss"], line["reward"], line["rur"]) == (1, 0.25, 0.5, 1.0)
    assert (line["total_groups_accepted"], line["actors"]) == (1.0, 1.0)


async def test_an_engine_that_disagrees_at_lag_0_is_reported_when_a_batch_begins_and_again_at_twice_as_much(
    tmp_path: Path, open_intake: OpenIntake, caplog: pytest.LogCaptureFixture
) -> None:
    async with learning(make_config(tmp_path, updates=2), open_intake) as learner:
        rank = await learner.publish()
        for step, nats in enumerate((0.009, 0.5, 0.02, 0.5, 0.03, 0.5, 0.05), start=1):
            await rank.say(StepDone(step=step, metrics={"lag_0/kl_behavior": nats}))
        await until(lambda: learner.coordinator.training.step == 7)
    warnings = [record.getMessage() for record in caplog.records if "engine and learner disagree" in record.msg]
    assert [warning.partition(",")[0] for warning in warnings] == [
        f"step {step}: tokens sampled by the very weights that train them have a kl_behavior of {nats} nats"
        for step, nats in ((3, 0.02), (7, 0.05))
    ]


async def until(happened: Callable[[], bool]) -> None:
    for _ in range(500):
        if happened():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen within 5 s")


async def test_a_step_that_is_trained_again_is_reported_again_with_its_batch(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with learning(make_config(tmp_path, groups_per_step=1), open_intake) as learner:
        rank = await trained_once(learner, 1)
        for loss in (0.25, 0.75):
            await rank.say(TrainerHello(rank=0, num_ranks=1, step=0))
            await rank.say(ShardWant(rank=0, num_ranks=1, step=0))
            await rank.hear(ShardMessage)
            await rank.say(StepDone(step=1, metrics={"loss": loss}))
            await until(lambda: learner.coordinator.training.step == 1)
    (line,) = read_metrics(tmp_path)
    assert (line["loss"], line["reward"]) == (0.75, 0.5)


async def test_after_the_last_step_ranks_hear_that_the_run_is_finished(tmp_path: Path, open_intake: OpenIntake) -> None:
    async with learning(make_config(tmp_path, training={"max_steps": 3}), open_intake) as learner:
        rank = learner.rank()
        await rank.say(ShardWant(rank=0, num_ranks=1, step=3))
        assert await rank.hear(TrainerFinished) == TrainerFinished(step=3)


async def test_a_committed_batch_is_served_after_a_restart_before_anything_else(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    config = make_config(tmp_path, groups_per_step=1)
    async with learning(config, open_intake) as learner:
        rank = await trained_once(learner, 1)
        await rank.say(ShardWant(rank=0, num_ranks=1, step=0))
        before = await rank.hear(ShardMessage)
    learner.intake.ledger.close()
    async with learning(config, open_intake) as learner:
        rank = learner.rank()
        await rank.say(TrainerHello(rank=0, num_ranks=1, step=0))
        await rank.say(ShardWant(rank=0, num_ranks=1, step=0))
        assert await rank.hear(ShardMessage) == before


async def test_version_numbers_are_never_granted_twice_and_name_the_incarnation(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    granted = []
    for _ in range(2):
        async with learning(make_config(tmp_path), open_intake) as learner:
            rank = learner.rank()
            for _ in range(2):
                await rank.say(VersionWant(step=5))
                grant = await rank.hear(VersionGrant)
                granted.append((grant.weights_version, grant.step, grant.incarnation))
        learner.intake.ledger.close()
    assert granted == [(1, 5, 1), (2, 5, 1), (3, 5, 2), (4, 5, 2)]


async def test_weights_of_steps_that_are_repeated_are_not_announced_to_actors(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with learning(make_config(tmp_path, groups_per_step=1), open_intake) as learner:
        rank = await trained_once(learner, 1)
        await rank.say(ShardWant(rank=0, num_ranks=1, step=0))
        await rank.hear(ShardMessage)
        # The trainer dies in step 0 and starts again: with version 2 of step 0, then with version 3 of step 1.
        rank = await learner.publish(step=0)
        actor = learner.actor("b")
        assert (await actor.join()).weights_version == 1
        await rank.say(VersionWant(step=1))
        await rank.hear(VersionGrant)
        await rank.say(Published(weights_version=3, step=1))
        assert await actor.hear(VersionMessage) == VersionMessage(weights_version=3, step=1)


async def test_old_logprobs_are_kept_and_served_with_the_shard_from_then_on(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    config = make_config(tmp_path, groups_per_step=1, updates=2, algorithm={"old": "proximal"})
    async with learning(config, open_intake) as learner:
        rank = await trained_once(learner, 2)
        want = ShardWant(rank=0, num_ranks=1, step=0)
        await rank.say(want)
        await rank.hear(ShardMessage)
        assert rank.envelope is not None
        assert np.isnan(rank.envelope.arrays["old_logprobs"]).all()
        message = OldLogprobs(step=0, rank=0, positions=(0, 0), indices=(0, 1), lengths=(2, 2))
        values = np.array([-1, -2, -3, -4], dtype="<f4")
        await rank.say(message, {"old_logprobs": values})
        await rank.say(want)
        await rank.hear(ShardMessage)
        assert rank.envelope.arrays["old_logprobs"].tolist() == [-1, -2, -3, -4]


async def test_a_checkpoint_lets_go_of_the_arrays_that_it_contains(tmp_path: Path) -> None:
    config = make_config(tmp_path, groups_per_step=1)
    intake = make_intake(config, segment_bytes=10)
    async with learning(config, lambda _: intake) as learner:
        rank = await trained_once(learner, 2)
        await rank.say(ShardWant(rank=0, num_ranks=1, step=0))
        await rank.hear(ShardMessage)
        segments = [tmp_path / "ledger" / "segments" / f"00000{number}.segment" for number in (1, 2)]
        assert [segment.exists() for segment in segments] == [True, True]
        await rank.say(Checkpointed(step=1, retained=(1,)))
        await until(lambda: not segments[0].exists())
        assert segments[1].exists()
    intake.ledger.close()


# ---- real sessions over a network that loses, doubles and reorders


async def work(network: MemoryNetwork, name: str) -> None:
    """A real actor session that answers its leases at once."""
    channel = network.dealer(name.encode())
    hello = Hello(session_id=name, host="here", engine="scripted")
    session = ActorSession(
        hello, "memory", time.monotonic(), join_timeout_seconds=60, rejoin_timeout_seconds=60, resend_seconds=0.02
    )
    session.capacity = 3
    while not session.ended:
        for envelope in session.messages_due(time.monotonic()):
            await channel.send(envelope)
        received = await channel.receive(0.01)
        for event in session.on_envelope(received, time.monotonic()) if received else []:
            if isinstance(event, LeaseGranted):
                group = answer(event.lease, event.lease.min_version)
                assert isinstance(group.message, GroupMessage)
                session.finish(group_from_message(group.message, group.arrays), time.monotonic())


async def train(learner: Learner, num_steps: int) -> None:
    """Rank 0, told everything without faults."""
    rank = await learner.publish()
    for step in range(num_steps):
        await rank.say(ShardWant(rank=0, num_ranks=1, step=step))
        await rank.hear(ShardMessage, within_seconds=60)
        await rank.say(StepDone(step=step + 1, metrics={}))
        await rank.say(VersionWant(step=step + 1))
        grant = await rank.hear(VersionGrant)
        await rank.say(Published(weights_version=grant.weights_version, step=step + 1))


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_faulty_network_loses_no_group_and_counts_none_twice(
    tmp_path: Path, open_intake: OpenIntake, seed: int
) -> None:
    config = make_config(tmp_path, network={"heartbeat_seconds": 0.05, "silence_seconds": 0.5})
    async with learning(config, open_intake) as learner:
        learner.now = None
        learner.actors.faults = Faults(seed, loss=0.2, duplication=0.2, reordering=0.2)
        actors = [asyncio.create_task(work(learner.actors, name)) for name in ("a", "b")]
        try:
            await asyncio.wait_for(train(learner, num_steps=8), 60)
        finally:
            for actor in actors:
                actor.cancel()
            outcomes = await asyncio.gather(*actors, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        ledger = learner.intake.ledger
        trained = [position for step in range(8) for position in ledger.step_positions(step)]
        assert len(trained) == len(set(trained)) == 16
        assert learner.intake.counts["groups_duplicate"] + learner.intake.counts["groups_superseded"] > 0
        counted = [row.prompt_id for row in ledger.visits("state = 'accepted'")]
        assert {id: ledger.reward_stats(id).visits for id in counted} == Counter(counted)


# ---- reports


async def test_the_status_file_says_who_is_connected_and_how_far_the_run_is(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        actor, lease = await holding_one_lease(learner)
        await actor.send_group(lease)
        await actor.hear(Ack)
        learner.coordinator.write_status()
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["run_id"], status["weights_version"], status["groups_counted"]) == ("run", 1, 1)
    (entry,) = status["actors_connected"]
    assert (entry["session"], entry["host"], entry["engine"], entry["groups_accepted"]) == ("a", "here", "scripted", 1)


async def test_an_evaluator_follows_the_weights_and_counts_as_no_actor(tmp_path: Path, open_intake: OpenIntake) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        await learner.publish()
        await learner.actor("a").join()
        evaluator = learner.actor("e")
        await evaluator.say(Hello(session_id="e", host="there", engine="scripted", role="evaluator"))
        await evaluator.hear(Welcome)
        await evaluator.say(heartbeat(tokens=0))
        assert (await evaluator.hear(VersionMessage)).weights_version == 1
        assert learner.coordinator.actor_metrics()["actors"] == 1
        learner.coordinator.write_status()
    status = json.loads((tmp_path / "status.json").read_text())
    assert [entry["session"] for entry in status["actors_connected"]] == ["a"]
    assert [(entry["session"], entry["host"]) for entry in status["evaluators_connected"]] == [("e", "there")]


async def test_tokens_of_before_the_session_do_not_count_in_its_rate(tmp_path: Path, open_intake: OpenIntake) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        actor = learner.actor()
        await actor.join()
        for tokens in (1_000_000, 1_000_500, 1_001_000):
            await actor.say(heartbeat(tokens=tokens))
            await actor.hear(VersionMessage)
            learner.wait(5.0)
        assert learner.coordinator.actor_metrics()["actor_tokens_per_second"] == pytest.approx(500 / 10)


def test_a_token_rate_needs_two_reports_and_forgets_old_ones() -> None:
    rate = TokenRate(window_seconds=30.0)
    rate.add(now=0.0, num_tokens=100)
    assert rate.per_second(now=1.0) == 0.0
    rate.add(now=10.0, num_tokens=200)
    assert rate.per_second(now=10.0) == 20.0
    assert rate.per_second(now=100.0) == 0.0
