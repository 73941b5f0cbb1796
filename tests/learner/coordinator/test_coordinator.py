"""The coordinator as a whole: refusals, durability, and real sessions over a faulty network."""

import asyncio
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest

from dcpo_async.algorithm import RewardStats
from dcpo_async.errors import LedgerError, PeerLostError, ProtocolError, VersionMismatchError
from dcpo_async.protocol.conversion import group_from_message
from dcpo_async.protocol.events import LeaseGranted
from dcpo_async.protocol.messages import (
    Ack,
    Envelope,
    GroupMessage,
    LeaseMessage,
    Reject,
    Want,
)
from dcpo_async.protocol.session import ActorSession
from dcpo_async.protocol.trainer_messages import (
    ShardMessage,
    ShardWant,
    StepDone,
    VersionGrant,
    VersionWant,
)
from dcpo_async.transport.interfaces import Received
from dcpo_async.transport.memory_channel import Faults, MemoryNetwork, MemoryRouter
from learner.coordinator.intake import Intake
from learner.ledger.ledger import Ledger
from learner.ledger.reader import StoredGroup
from tests.learner.coordinator.running import (
    Learner,
    Peer,
    heartbeat,
    holding_one_lease,
    learning,
)
from tests.learner.small_run import VOCAB_SIZE, OpenIntake, answer, make_config, make_prompts
from tests.protocol.made_session import hello


async def test_an_actor_of_another_run_is_refused_in_words(tmp_path: Path, open_intake: OpenIntake) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        stranger = Peer(learner.actors, "a", run_id="another")
        await stranger.say(hello())
        reject = await stranger.hear(Reject)
        assert reject.reason == "run_id"
        assert "this learner is on run run, the peer on run another" in reject.detail


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
    assert again.ledger.num_groups == 0
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
        assert list(learner.coordinator.actors.connected) == [b"b"]


async def work(network: MemoryNetwork, name: str) -> None:
    """A real actor session that answers its leases at once."""
    channel = network.dealer(name.encode())
    session = ActorSession(
        hello(name), "memory", time.monotonic(), join_timeout_seconds=60, rejoin_timeout_seconds=60, resend_seconds=0.02
    )
    session.capacity = 6
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
        await rank.announce(grant.weights_version, step + 1)


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
        counted = [row.prompt_id for row in ledger.visits("accepted")]
        assert {id: ledger.reward_stats(id).visits for id in counted} == Counter(counted)
