"""Slow actors, hoarders and hung ones at a running coordinator: who loses a lease, who is named."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from dcpo_async.limits import MAX_HELD
from dcpo_async.protocol.messages import Ack, Heartbeat, LeaseMessage, VersionMessage, Want
from dcpo_async.protocol.trainer_messages import ShardMessage, ShardWant
from dcpo_async.records import Lease, LeaseName
from tests.learner.coordinator.running import Learner, Peer, learning, name_of, until
from tests.learner.small_run import OpenIntake, make_config


def at_work(tokens: int, *held: LeaseName) -> Heartbeat:
    """Two responses in flight to each lease, which has so many tokens."""
    return Heartbeat(
        held=held,
        tokens=(tokens,) * len(held),
        activity="generating",
        weights_version=1,
        tokens_generated=0,
        groups_in_flight=len(held),
        responses_in_flight=2 * len(held),
    )


async def leases(learner: Learner, *names: str) -> list[tuple[Peer, Lease]]:
    """A lease for each, in this order."""
    await learner.publish()
    found = []
    for name in names:
        actor = learner.actor(name)
        await actor.join()
        await actor.say(Want(num_leases=1))
        found.append((actor, await actor.lease()))
    return found


async def hear(actor: Peer, kind: type[Any]) -> Any:
    """The next message of a kind, whatever comes before it."""
    while True:
        envelope = await actor.channel.receive(5.0)
        assert envelope is not None, f"{actor.name} heard no {kind.kind}"
        if isinstance(envelope.message, kind):
            actor.envelope = envelope
            return envelope.message


async def work(learner: Learner, speeds: dict[Peer, tuple[Lease, float]], seconds: int) -> None:
    """Actors that send a heartbeat every 3 s, by their tokens a second of each response."""
    for second in range(3, seconds + 1, 3):
        learner.wait(3.0)
        for actor, (lease, speed) in speeds.items():
            await actor.say(at_work(round(2 * speed * second), name_of(lease)))
            await hear(actor, VersionMessage)


async def test_a_lease_that_stands_still_goes_back_and_its_holder_and_seconds_are_named(
    tmp_path: Path, open_intake: OpenIntake, caplog: pytest.LogCaptureFixture
) -> None:
    async with learning(make_config(tmp_path, actor={"stall_seconds": 30.0}), open_intake) as learner:
        ((actor, lease),) = await leases(learner, "a")
        for _ in range(10):
            await work(learner, {actor: (lease, 0.0)}, 3)
        await until(lambda: learner.intake.counts["leases_stalled"] == 1)
        ack = await hear(actor, Ack)
        assert (ack.position, ack.attempt, ack.outcome) == (lease.position, 1, "superseded")
        assert "lease 0 of a on here is taken back after 30 s with 0 tokens: its actor (generating)" in caplog.text
        await actor.say(Want(num_leases=1))
        other = learner.actor("b")
        await other.join()
        await other.say(Want(num_leases=1))
        again = await other.lease()
        assert (again.position, again.attempt) == (lease.position, 2)
        assert await actor.hears_nothing(), "a back-off after what it has lost"
        # Its group, should it come after all, changes nothing.
        await actor.send_group(lease)
        assert (await hear(actor, Ack)).outcome == "superseded"


async def test_a_hoarder_gets_its_fair_share_and_loses_it(tmp_path: Path, open_intake: OpenIntake) -> None:
    config = make_config(tmp_path, max_lag=7, actor={"stall_seconds": 30.0, "groups_in_flight": 2})
    async with learning(config, open_intake) as learner:
        await learner.publish()
        hoarder = learner.actor("hoarder")
        await hoarder.join()
        await hoarder.say(Want(num_leases=MAX_HELD))
        held = [name_of(await hoarder.lease()) for _ in range(8)]
        assert await hoarder.hears_nothing(), "8 = 4 · groups_in_flight of the 16 that are open"
        for _ in range(10):
            learner.wait(3.0)
            await hoarder.say(at_work(0, *held))
            await hear(hoarder, VersionMessage)
        await until(lambda: learner.intake.counts["leases_stalled"] == 8)
        await hoarder.say(Want(num_leases=MAX_HELD))
        await until(lambda: learner.coordinator.actors.rotation.credit(b"hoarder") == 0)


async def test_a_slow_actor_is_named_and_the_lease_that_a_batch_waits_for_goes_to_a_fast_idle_one(
    tmp_path: Path, open_intake: OpenIntake, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with learning(make_config(tmp_path, groups_per_step=1, max_lag=0), open_intake) as learner:
        ((slow, lease),) = await leases(learner, "slow")
        fast = learner.actor("fast")
        await fast.join()
        desk = learner.coordinator.actors
        desk.stragglers.progress.finished(b"fast", [8], grown=8, age=0.4, now=1000.0)
        await fast.say(Want(num_leases=1))
        rank = learner.rank("rank-1")
        await rank.say(ShardWant(rank=0, num_ranks=1, step=0))
        await work(learner, {slow: (lease, 0.3)}, 15)
        again: LeaseMessage = await hear(fast, LeaseMessage)
        assert (again.position, again.attempt) == (lease.position, 2)
        assert (await hear(slow, Ack)).outcome == "superseded"
        assert learner.intake.counts["leases_handed_over"] == 1
        assert "lease 0 of slow on here is handed over after" in caplog.text
        await until(lambda: "slow on here is slow: " in caplog.text)
        await fast.send_group(Lease(again.position, 2, again.prompt_id, 1, 1, lease.prompt_token_ids, ""))
        assert (await hear(fast, Ack)).outcome == "accepted"
        await hear(rank, ShardMessage)


async def test_whom_a_batch_waits_for_is_in_the_status_and_told_after_half_a_minute_and_twice_as_long(
    tmp_path: Path, open_intake: OpenIntake, caplog: pytest.LogCaptureFixture
) -> None:
    async with learning(make_config(tmp_path, groups_per_step=1), open_intake) as learner:
        ((actor, lease),) = await leases(learner, "a")
        rank = learner.rank("rank-1")
        await rank.say(ShardWant(rank=0, num_ranks=1, step=0))
        await until(lambda: learner.intake.awaited is not None)
        look = learner.coordinator.actors.stragglers.look
        for second in range(0, 100, 3):
            if second:
                await work(learner, {actor: (lease, 0.01 * second)}, 3)
            look(1000.0 + second)
        lines = [line for line in caplog.messages if line.startswith("the next batch has waited")]
        assert len(lines) == 2
        assert lines[0].startswith("the next batch has waited for 30 s: lease 0 is first, with a on here for 30 s")
        assert "for 60 s" in lines[1]
        learner.coordinator.status.write()
        found = json.loads((tmp_path / "status.json").read_text())["waiting_for"]
        assert (found["position"], found["holder"], found["lease_seconds"]) == (0, "a on here", 99.0)
        assert found["tokens"] > 0


async def test_leases_on_their_way_count_as_granted(tmp_path: Path, open_intake: OpenIntake) -> None:
    async with learning(make_config(tmp_path, max_lag=7), open_intake) as learner:
        await learner.publish()
        actor = learner.actor()
        await actor.join()
        for _ in range(3):
            # As when responses end while the leases of the Want before are on their way.
            await actor.say(Want(num_leases=2))
            await until(lambda: learner.intake.counts["leases"] >= 2)
        assert [(await actor.lease()).position for _ in range(2)] == [0, 1]
        assert await actor.hears_nothing()
        await actor.say(Want(num_leases=2))
        assert [(await actor.lease()).position for _ in range(2)] == [2, 3]
