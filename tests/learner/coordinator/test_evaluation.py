"""Evaluations at the coordinator: whose answers count, and that training hears nothing of them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import torch

from dcpo_async.protocol.messages import Ack, Heartbeat, LeaseFailed, LeaseMessage, VersionMessage, Want, Welcome
from dcpo_async.protocol.trainer_messages import TrainerHello, VersionGrant, VersionWant
from dcpo_async.records import EVALUATION_POSITIONS, Hold, Lease, LeaseName, Prompt
from dcpo_async.run_folder import RunFolder
from dcpo_async.weights.store import write_snapshot
from learner.evaluations.desk import of_training
from learner.evaluations.problems import HeldOut
from learner.ledger.reader import evaluation_results
from tests.learner.coordinator.running import Learner, Peer, heartbeat, learning, until
from tests.learner.small_run import VOCAB_SIZE, OpenIntake, answer, make_config
from tests.protocol.made_session import hello

NUM_PROBLEMS = 3


def held_out() -> HeldOut:
    prompts = tuple(Prompt(f"held-{i}", f"held {i}", str(i), (i, 1)) for i in range(NUM_PROBLEMS))
    return HeldOut({"sums": prompts}, VOCAB_SIZE, {"samples": 2})


@asynccontextmanager
async def measuring(folder: Path, open_intake: OpenIntake, **more: object) -> AsyncIterator[Learner]:
    evaluation = {"every_steps": 1, "data": ("sums.jsonl",), "samples": 2, "keep_best": False, **more}
    config = make_config(folder, evaluation=evaluation, actor={"regrade_share": 1.0})
    async with learning(config, open_intake, held_out=held_out()) as learner:
        yield learner


async def publish(learner: Learner, step: int = 0) -> Peer:
    """A version that stands in the store, as an evaluation holds it."""
    rank, folder = learner.rank(), RunFolder(learner.intake.config.folder)
    await rank.say(TrainerHello(rank=0, num_ranks=1, step=step))
    await rank.say(VersionWant(step=step))
    version = (await rank.hear(VersionGrant)).weights_version
    folder.skeleton.mkdir(exist_ok=True)
    (folder.skeleton / "config.json").write_text("{}")
    write_snapshot(
        folder.weights,
        weights_version=version,
        run_id="run",
        incarnation=1,
        step=step,
        tensors={"w": torch.zeros(2) + step},
        skeleton_folder=folder.skeleton,
    )
    await rank.announce(version, step)
    return rank


async def at_work(learner: Learner) -> tuple[Peer, list[Lease]]:
    """An actor that stays at version 1, and the first problem that it was given while training may want its places."""
    actor = learner.actor()
    await actor.join()
    await publish(learner)
    told = await actor.hear(VersionMessage)
    assert told.hold == Hold(1, 900.0)
    await actor.say(heartbeat().model_copy(update={"response_capacity": 8}))
    assert (await actor.hear(VersionMessage)).hold == told.hold
    return actor, [await actor.lease()]


async def test_problems_go_to_who_stays_and_the_answers_into_a_table_of_their_own(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with measuring(tmp_path, open_intake) as learner:
        actor, leases = await at_work(learner)
        for number in range(NUM_PROBLEMS):
            (lease,) = leases
            assert (lease.prompt_id, lease.min_version, lease.answer) == (f"held-{number}", 1, str(number))
            assert lease.terms is not None
            assert (lease.terms.exact_version, lease.terms.samples) == (1, 2)
            is_last = number == NUM_PROBLEMS - 1
            await actor.send_group(lease)
            if is_last:
                assert (await actor.hear(VersionMessage)).hold is None
            assert (await actor.hear(Ack)).outcome == "accepted"
            if not is_last:
                leases = [await actor.lease()]
            await actor.send_group(lease)
            assert (await actor.hear(Ack)).outcome == ("superseded" if is_last else "duplicate")
        found = evaluation_results(learner.intake.ledger, 1)
        assert {number: one["rewards"] for number, one in found.items()} == {i: [1.0, 0.0] for i in range(3)}
        counts = learner.intake.counts
        assert learner.intake.ledger.num_groups == counts["regraded"] == counts["groups_accepted"] == 0
        assert learner.intake.ledger.visits() == []
        await actor.say(Want(num_leases=1))
        assert (await actor.lease()).position == 0


async def test_answers_that_say_nothing_of_the_version_do_not_count_and_others_are_asked(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with measuring(tmp_path, open_intake, max_share=1.0) as learner:
        actor, (first,) = await at_work(learner)
        second = await actor.lease()
        await actor.lease()
        await publish(learner, 1)
        await actor.hear(VersionMessage)
        mixed = answer(first, [1, 2])
        await actor.say(mixed.message, dict(mixed.arrays))
        ack = await actor.hear(Ack)
        assert (ack.outcome, ack.detail) == ("superseded", "version 1 is measured, [1, 2] have answered")
        assert evaluation_results(learner.intake.ledger, 1) == {}
        # One that did not stay is not asked again; who starts is.
        other = learner.actor("b")
        await other.say(hello("b"))
        assert (await other.hear(Welcome)).hold == Hold(1, 900.0)
        await other.say(heartbeat().model_copy(update={"response_capacity": 8}))
        await other.hear(VersionMessage)
        again = {lease.position: lease for lease in [await other.lease() for _ in range(3)]}
        assert again[first.position].attempt == again[second.position].attempt == 2


async def test_an_unsound_answer_counts_against_its_session_as_any_other(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with measuring(tmp_path, open_intake) as learner:
        actor, (lease,) = await at_work(learner)
        await actor.send_group(lease, rewards=(1.0,))
        ack = await actor.hear(Ack)
        assert (ack.outcome, ack.detail) == ("invalid", "1 lengths, a group has 2 responses")
        assert learner.intake.counts["groups_invalid"] == 0
        (connected,) = learner.coordinator.actors.connected.values()
        assert connected.refused == {lease.position}


async def test_a_problem_that_is_given_back_goes_out_again_where_it_is_the_problem_and_blames_no_prompt(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with measuring(tmp_path, open_intake) as learner:
        actor, (lease,) = await at_work(learner)
        failed = LeaseFailed(position=lease.position, attempt=1, reason="no", is_prompts_fault=True)
        await actor.say(failed)
        assert (await actor.hear(VersionMessage)).hold is not None
        again = await actor.lease()
        assert (again.position, again.attempt) == (lease.position, 2)
        await actor.say(failed.model_copy(update={"attempt": 2, "is_prompts_fault": False}))
        assert (await actor.hear(VersionMessage)).hold is None
        assert learner.intake.counts["lease_failures"] == 0


async def test_who_stays_gets_the_leases_of_training_that_its_version_can_serve_and_no_others(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with measuring(tmp_path, open_intake) as learner:
        actor, _ = await at_work(learner)
        await publish(learner, 2)
        await actor.hear(VersionMessage)
        # max_lag 1, two groups a step: the fifth trains at step 2 and needs weights of step 1.
        await actor.say(Want(num_leases=6))
        heard: list[int] = []
        while (envelope := await actor.channel.receive(0.2)) is not None:
            assert isinstance(envelope.message, LeaseMessage)
            heard.append(envelope.message.position)
        assert [position for position in heard if position < EVALUATION_POSITIONS] == [0, 1, 2, 3]
        assert len(heard) == 6, "places that training cannot use take two problems more"
        other = learner.actor("b")
        await other.join()
        await other.say(Want(num_leases=6))
        assert (await other.lease()).position == 4


def test_of_a_heartbeat_training_sees_its_own_leases_alone() -> None:
    own, other = LeaseName(3, 1), LeaseName(EVALUATION_POSITIONS + 5, 1)
    mixed = Heartbeat(
        held=(own, other),
        tokens=(7, 9),
        weights_version=1,
        tokens_generated=0,
        groups_in_flight=2,
        responses_in_flight=6,
    )
    seen = of_training(mixed, samples=4)
    assert (seen.held, seen.tokens, seen.responses_in_flight) == ((own,), (7,), 2)
    alone = mixed.model_copy(update={"held": (own,), "tokens": (7,)})
    assert of_training(alone, samples=4) is alone


async def test_an_actor_that_is_drained_finishes_its_problem_and_gets_no_other(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with measuring(tmp_path, open_intake) as learner:
        actor, (lease,) = await at_work(learner)
        desk = learner.coordinator.actors
        desk.rotation.drain(b"a", "somebody asked")
        assert desk.evaluations.num_held(b"a") == 1
        other = learner.actor("b")
        await other.join()
        assert desk.evaluations.hold_for(b"a") is not None
        await actor.send_group(lease)
        assert (await actor.hear(Ack)).outcome == "accepted"
        assert desk.evaluations.num_held(b"a") == 0
        learner.wait(1.0)
        await until(lambda: desk.evaluations.hold_for(b"b") is not None)
        assert await actor.hears_nothing()
