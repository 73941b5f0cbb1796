"""What actors and evaluators are told, and when."""

import json
import re
from pathlib import Path

import pytest

from dcpo_async.protocol.messages import (
    Ack,
    Bye,
    LeaseFailed,
    Reject,
    VersionMessage,
    Want,
    Welcome,
)
from dcpo_async.protocol.trainer_messages import (
    StepDone,
)
from tests.learner.coordinator.running import heartbeat, holding_one_lease, learning, name_of, until
from tests.learner.small_run import OpenIntake, make_config
from tests.protocol.made_session import hello


async def test_an_actor_learns_the_run_when_it_joins(tmp_path: Path, open_intake: OpenIntake) -> None:
    async with learning(make_config(tmp_path, sampling={"temperature": 0.7}), open_intake) as learner:
        actor = learner.actor()
        welcome = await actor.join()
        assert (welcome.sampling.group_size, welcome.sampling.temperature, welcome.weights_port) == (2, 0.7, 5558)
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
        assert learner.intake.ledger.num_groups == 1


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


async def test_an_unsound_group_is_refused_and_its_lease_goes_out_again(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        actor, lease = await holding_one_lease(learner)
        await actor.send_group(lease, version=77)
        ack = await actor.hear(Ack)
        assert ack.outcome == "invalid"
        assert "weights versions [77] were never published" in ack.detail
        # Not to the same host at once, which is all there is.
        await actor.say(Want(num_leases=1))
        assert (await actor.lease()).position == lease.position + 1
        learner.wait(30.0)
        await actor.say(Want(num_leases=1))
        again = await actor.lease()
        assert (again.position, again.attempt) == (lease.position, 2)


async def test_a_session_whose_groups_are_refused_is_ended_by_name_and_another_gets_its_leases(
    tmp_path: Path, open_intake: OpenIntake, caplog: pytest.LogCaptureFixture
) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        await learner.publish()
        sick, well = learner.actor("sick"), learner.actor("well")
        await sick.say(hello("sick").model_copy(update={"host": "bad-gpu"}))
        await sick.hear(Welcome)
        await sick.say(Want(num_leases=4))
        leases = [await sick.lease() for _ in range(4)]
        for lease in leases[:3]:
            await sick.send_group(lease, version=77)
            assert (await sick.hear(Ack)).outcome == "invalid"
        reject = await sick.hear(Reject)
        assert reject.reason == "unsound"
        assert re.fullmatch(r"its groups are refused: weights versions \[77\].*; is its GPU healthy\?", reject.detail)
        (line,) = [record.getMessage() for record in caplog.records if "is refused: 3 groups" in record.getMessage()]
        assert "actor sick on bad-gpu is refused" in line
        await well.join()
        await well.say(Want(num_leases=4))
        assert [(await well.lease()).position for _ in range(4)] == [lease.position for lease in leases]
        assert learner.intake.counts["lease_failures"] == 0


async def test_a_sound_group_between_refused_ones_keeps_the_session(tmp_path: Path, open_intake: OpenIntake) -> None:
    config = make_config(tmp_path, groups_per_step=3, max_lag=1)
    async with learning(config, open_intake) as learner:
        await learner.publish()
        actor = learner.actor()
        await actor.join()
        await actor.say(Want(num_leases=5))
        outcomes = []
        for version in (77, 77, 1, 77, 77):
            await actor.send_group(await actor.lease(), version=version)
        for _ in range(5):
            outcomes.append((await actor.hear(Ack)).outcome)
        assert outcomes == ["invalid", "invalid", "accepted", "invalid", "invalid"]
        assert await actor.hears_nothing()


async def test_actors_of_a_learner_that_stops_are_told_to_wait_and_lose_nothing(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        actor, lease = await holding_one_lease(learner)
        learner.coordinator.actors.pause("the learner stops")
        assert (await actor.hear(Reject)) == Reject(reason="stopping", detail="the learner stops")
        newcomer = learner.actor("b")
        await newcomer.say(hello("b"))
        assert (await newcomer.hear(Reject)).reason == "stopping"
        # While it writes its last checkpoint nobody is lost, and what arrives counts.
        learner.wait(60.0)
        await actor.say(Want(num_leases=3))
        assert await actor.hears_nothing()
        await actor.send_group(lease)
        assert (await actor.hear(Ack)).outcome == "accepted"
        assert learner.intake.counts["leases_released"] == 0


@pytest.mark.parametrize(("has_failed", "falls"), [(True, 1), (False, 0)])
async def test_an_engine_that_fails_with_a_lease_is_remembered_against_its_prompt_and_one_that_leaves_is_not(
    tmp_path: Path, open_intake: OpenIntake, has_failed: bool, falls: int
) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        actor, lease = await holding_one_lease(learner)
        await actor.say(Bye(reason="it ends", has_failed=has_failed))
        await until(lambda: learner.intake.counts["leases_released"] == 1)
        slot = learner.intake.table.get(lease.position)
        assert slot is not None
        assert (slot.falls, slot.failures) == (falls, 0)


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
        assert list(learner.coordinator.actors.connected) == [b"b"]


async def test_an_unknown_session_is_asked_to_join_again(tmp_path: Path, open_intake: OpenIntake) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        actor = learner.actor()
        for message in (Want(num_leases=1), heartbeat()):
            await actor.say(message)
            assert (await actor.hear(Reject)).reason == "rejoin"
        assert learner.coordinator.actors.connected == {}


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


async def test_a_message_that_only_trainers_send_is_refused(tmp_path: Path, open_intake: OpenIntake) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        actor = learner.actor()
        await actor.join()
        await actor.say(StepDone(step=1, metrics={}))
        reject = await actor.hear(Reject)
        assert (reject.reason, reject.detail) == ("invalid", "an actor does not send step_done")


async def test_an_evaluator_follows_the_weights_and_counts_as_no_actor(tmp_path: Path, open_intake: OpenIntake) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        await learner.publish()
        await learner.actor("a").join()
        evaluator = learner.actor("e")
        await evaluator.say(hello(evaluator.name, host="there", role="evaluator"))
        await evaluator.hear(Welcome)
        await evaluator.say(heartbeat(tokens=0))
        assert (await evaluator.hear(VersionMessage)).weights_version == 1
        assert learner.coordinator.actors.metrics()["actors"] == 1
        learner.coordinator.status.write()
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
        assert learner.coordinator.actors.metrics()["actor_tokens_per_second"] == pytest.approx(500 / 10)


async def test_a_session_of_an_earlier_start_of_the_learner_is_asked_to_join_again(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        actor = learner.actor()
        await actor.join()
        actor.incarnation = 7
        await actor.say(Want(num_leases=1))
        assert (await actor.hear(Reject)).reason == "rejoin"
        assert learner.coordinator.actors.rotation.credit(b"a") == 0


async def test_silence_counts_from_its_last_second_and_a_lost_session_joins_again(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        actor = learner.actor()
        await actor.join()
        desk = learner.coordinator.actors
        learner.wait(14.9)
        desk.drop_silent()
        assert list(desk.connected) == [b"a"]
        learner.wait(0.1)
        desk.drop_silent()
        assert not desk.connected
        await actor.say(heartbeat())
        assert (await actor.hear(Reject)).reason == "rejoin"
        await actor.join()
        await actor.say(heartbeat())
        await actor.hear(VersionMessage)


async def test_a_hello_that_comes_twice_keeps_what_is_known_of_the_actor(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        actor, lease = await holding_one_lease(learner)
        await actor.send_group(lease)
        await actor.hear(Ack)
        await actor.say(Want(num_leases=0))
        await actor.join()
        (known,) = learner.coordinator.actors.connected.values()
        assert (known.groups_accepted, learner.coordinator.actors.rotation.credit(b"a")) == (1, 0)


async def test_after_a_bye_only_a_hello_is_understood(tmp_path: Path, open_intake: OpenIntake) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        actor = learner.actor()
        await actor.join()
        await actor.say(Bye(reason="asked to end"))
        await actor.say(heartbeat())
        assert (await actor.hear(Reject)).reason == "rejoin"
