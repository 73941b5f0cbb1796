"""A run whose disk is nearly full takes nothing in, however long it takes, loses nothing, and gives nobody up."""

import asyncio
from pathlib import Path

import pytest

from dcpo_async.devices import Devices
from dcpo_async.protocol.messages import Ack, Bye, Reject, Want
from dcpo_async.protocol.trainer_messages import StepDone, TrainerHello, VersionGrant, VersionWant
from learner.coordinator import disk_hold
from learner.parts import Parts
from tests.learner.coordinator.running import Learner, Peer, holding_one_lease, learning, name_of, until
from tests.learner.small_run import OpenIntake, make_config


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A disk that lacks as many bytes as a test says."""
    found = {"lacks": 0.0}
    monkeypatch.setattr(disk_hold, "lacking_room", lambda path: found["lacks"])
    monkeypatch.setattr(disk_hold, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(disk_hold, "GLANCE_SECONDS", 0.0)
    monkeypatch.setattr(disk_hold, "SETTLING_SECONDS", 0.0)
    return found


async def until_held(learner: Learner) -> None:
    await until(lambda: not learner.coordinator.hold.is_settled())


async def rank_of_a_held_run(learner: Learner, disk: dict[str, float]) -> Peer:
    rank = await learner.publish()
    disk["lacks"] = 1.0
    await until_held(learner)
    return rank


async def test_an_actor_keeps_what_it_has_until_there_is_room(
    tmp_path: Path, open_intake: OpenIntake, disk: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        actor, lease = await holding_one_lease(learner)
        disk["lacks"] = 3.14e6
        await actor.send_group(lease)
        reject = await actor.hear(Reject)
        assert reject.reason == "stopping"
        assert "disk is nearly full" in reject.detail
        assert learner.intake.ledger.num_groups == 0
        # Far longer than the silence that counts as an actor's death; a session would say hello meanwhile.
        learner.wait(1000.0)
        await asyncio.sleep(0.1)
        disk["lacks"] = 0.0
        assert await actor.hears_nothing()
        await actor.join((name_of(lease),))
        await actor.send_group(lease)
        assert (await actor.hear(Ack)).outcome == "accepted"
        await actor.say(Want(num_leases=1))
        await actor.lease()
    assert learner.intake.counts["leases_lost"] == 0
    assert caplog.text.count("its disk lacks 3.1 MB of room; the run waits") == 1
    assert caplog.text.count("s for room on its disk") == 1


async def test_silence_counts_again_once_all_had_time_to_come_back(
    tmp_path: Path, open_intake: OpenIntake, disk: dict[str, float]
) -> None:
    config = make_config(tmp_path, network={"heartbeat_seconds": 0.1, "silence_seconds": 0.5})
    async with learning(config, open_intake) as learner:
        await holding_one_lease(learner)
        disk["lacks"] = 1.0
        await until_held(learner)
        learner.wait(1000.0)
        disk["lacks"] = 0.0
        await asyncio.sleep(0.3)
        assert list(learner.coordinator.actors.connected) == [b"a"]
        await until(lambda: not learner.coordinator.actors.connected)


async def test_an_actor_that_leaves_meanwhile_has_left(
    tmp_path: Path, open_intake: OpenIntake, disk: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with learning(make_config(tmp_path), open_intake) as learner:
        actor, _ = await holding_one_lease(learner)
        disk["lacks"] = 1.0
        await until_held(learner)
        await actor.say(Bye(reason="SIGTERM"))
        await asyncio.sleep(0.1)
        assert " left (" not in caplog.text
        disk["lacks"] = 0.0
        await until(lambda: "actor a left (SIGTERM); 1 leases go out again" in caplog.text)


async def test_what_a_rank_says_once_is_kept_and_what_it_asks_is_asked_again(
    tmp_path: Path, open_intake: OpenIntake, disk: dict[str, float]
) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        rank = await rank_of_a_held_run(learner, disk)
        granted = learner.intake.versions.steps.copy()
        for _ in range(3):
            await rank.say(VersionWant(step=1))
        await rank.say(TrainerHello(rank=0, num_ranks=1, step=4))
        await rank.say(StepDone(step=5, metrics={}))
        assert await rank.hears_nothing()
        assert learner.coordinator.ranks.step == 0
        disk["lacks"] = 0.0
        await until(lambda: learner.coordinator.ranks.step == 5)
        assert learner.intake.versions.steps == granted
        assert await rank.hears_nothing()
        await rank.say(VersionWant(step=5))
        assert (await rank.hear(VersionGrant)).step == 5


async def test_a_trainer_starts_once_there_is_room_and_leaves_of_dead_ranks_are_no_reason_to_wait(
    tmp_path: Path, open_intake: OpenIntake, monkeypatch: pytest.MonkeyPatch, disk: dict[str, float]
) -> None:
    config = make_config(tmp_path)
    half = config.folder / "checkpoints" / ".writing-step-8"
    async with learning(config, open_intake) as learner:
        half.mkdir(parents=True)
        (half / "part").write_bytes(bytes(10))
        monkeypatch.setattr(disk_hold, "lacking_room", lambda path: 1.0 if half.exists() else disk["lacks"])
        await until_held(learner)
        trainer = Parts(config, Devices((), 1), learner.coordinator, 1, tmp_path, "ipc://ranks", []).trainer()
        assert trainer.ready is not None
        async with asyncio.timeout(5):
            await trainer.ready()
        disk["lacks"] = 1.0
        starting = asyncio.ensure_future(trainer.ready())
        await asyncio.sleep(0.2)
        assert not starting.done()
        disk["lacks"] = 0.0
        async with asyncio.timeout(5):
            await starting


async def test_a_run_that_is_stopped_comes_to_its_end_without_room(
    tmp_path: Path, open_intake: OpenIntake, disk: dict[str, float]
) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        rank = await rank_of_a_held_run(learner, disk)
        await rank.say(StepDone(step=1, metrics={}))
        starting = asyncio.create_task(learner.coordinator.hold.until_over())
        await asyncio.sleep(0.1)
        assert not starting.done()
        # As the launcher does at a signal: the trainer has its last batch and its checkpoint to tell of.
        learner.coordinator.hold.release()
        await until(lambda: learner.coordinator.ranks.step == 1)
        await until(starting.done)
        async with asyncio.timeout(5):
            await learner.coordinator.end("the learner stops", dismiss=False)
