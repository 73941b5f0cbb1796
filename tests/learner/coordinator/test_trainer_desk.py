"""What trainer ranks are told, and when."""

import json
from pathlib import Path

import numpy as np
import pytest

from dcpo_async.protocol.messages import (
    Message,
    Reject,
    VersionMessage,
    Want,
)
from dcpo_async.protocol.trainer_messages import (
    Checkpointed,
    CheckpointFailed,
    OldLogprobs,
    Published,
    ShardMessage,
    ShardWant,
    StepDone,
    TrainerFinished,
    TrainerHello,
    VersionGrant,
    VersionWant,
)
from learner.trainer.coordinator_link import samples_of
from tests.learner.coordinator.running import Peer, learning, trained_once, until
from tests.learner.small_run import OpenIntake, make_config, make_intake


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


async def test_after_the_last_step_ranks_hear_that_the_run_is_finished(tmp_path: Path, open_intake: OpenIntake) -> None:
    async with learning(make_config(tmp_path, training={"max_steps": 3}), open_intake) as learner:
        rank = learner.rank()
        await rank.say(ShardWant(rank=0, num_ranks=1, step=3))
        assert await rank.hear(TrainerFinished) == TrainerFinished(step=3)


async def test_once_the_learner_stops_ranks_get_no_further_batch_and_hear_that_it_is_for_now(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with learning(make_config(tmp_path, groups_per_step=1), open_intake) as learner:
        await trained_once(learner, 1)
        learner.coordinator.ranks.stop()
        rank = learner.rank("another")
        await rank.say(ShardWant(rank=0, num_ranks=1, step=1))
        assert await rank.hear(TrainerFinished) == TrainerFinished(step=1, is_stopped=True)


async def test_a_stop_lets_all_ranks_train_what_one_was_given_and_nothing_after_it(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with learning(make_config(tmp_path, groups_per_step=1), open_intake) as learner:
        first = await trained_once(learner, 1)
        await first.say(ShardWant(rank=0, num_ranks=2, step=0))
        await first.hear(ShardMessage)
        learner.coordinator.ranks.stop()
        assert learner.coordinator.ranks.unsaved == 1
        second = learner.rank("rank-1")
        await second.say(ShardWant(rank=1, num_ranks=2, step=0))
        await second.hear(ShardMessage)
        await second.say(ShardWant(rank=1, num_ranks=2, step=1))
        assert await second.hear(TrainerFinished) == TrainerFinished(step=1, is_stopped=True)


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
                assert rank.envelope is not None
                granted.append((grant.weights_version, grant.step, rank.envelope.incarnation))
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
        await rank.announce(3, step=1)
        num_published = learner.coordinator.ranks.num_published
        # Told again, since the answer may have been lost: answered again, and counted once.
        await rank.announce(3, step=1)
        assert learner.coordinator.ranks.num_published == num_published
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
        message = OldLogprobs(step=0, positions=(0, 0), indices=(0, 1), lengths=(2, 2))
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


async def test_a_checkpoint_that_could_not_be_written_is_told_and_counted(
    tmp_path: Path, open_intake: OpenIntake, caplog: pytest.LogCaptureFixture
) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        rank = await trained_once(learner, 1)
        await rank.say(CheckpointFailed(step=1, reason="rank 1: No space left on device", failures_left=2))
        await rank.say(Checkpointed(step=2, retained=(2,), seconds=3.5, num_bytes=1200, num_put_off=1))
        await rank.say(StepDone(step=3, metrics={}))
        await until(lambda: learner.coordinator.ranks.step == 3)
    assert (
        "the checkpoint of step 1 could not be written: rank 1: No space left on device; "
        "the next one is tried, 2 more in a row are borne"
    ) in caplog.text
    metrics = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert {name: value for name, value in metrics.items() if name.startswith("checkpoint")} == {
        "checkpoint_seconds": 3.5,
        "checkpoint_bytes": 1200.0,
        "checkpoint_put_off": 1.0,
        "checkpoint_failures": 1.0,
    }


async def test_a_rank_of_another_start_of_the_learner_is_turned_away_and_changes_nothing(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        stale = Peer(learner.ranks, "rank-0", "run", incarnation=7)
        for message in (TrainerHello(rank=0, num_ranks=1, step=9), StepDone(step=9, metrics={})):
            await stale.say(message)
            reject = await stale.hear(Reject)
            assert (reject.reason, reject.detail) == ("invalid", "this is start 1 of the run, the peer is of start 7")
            stale.incarnation = 7
        assert learner.coordinator.ranks.step == 0


async def test_a_rank_of_another_run_gets_nothing_and_changes_nothing(tmp_path: Path, open_intake: OpenIntake) -> None:
    async with learning(make_config(tmp_path, groups_per_step=1), open_intake) as learner:
        await trained_once(learner, 1)
        stranger = Peer(learner.ranks, "stranger", "another", incarnation=1)
        for message in (
            TrainerHello(rank=0, num_ranks=1, step=9),
            ShardWant(rank=0, num_ranks=1, step=1),
            VersionWant(step=1),
            StepDone(step=9, metrics={}),
        ):
            await stranger.say(message)
            reject = await stranger.hear(Reject)
            assert (reject.reason, reject.detail.split(";")[0]) == (
                "run_id",
                "this learner is on run run, the peer on run another",
            )
        assert await stranger.hears_nothing()
        assert learner.coordinator.ranks.step == 0


async def test_a_version_that_was_not_granted_for_its_step_is_refused_in_words_and_the_learner_goes_on(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        rank = learner.rank()
        await rank.say(VersionWant(step=3))
        version = (await rank.hear(VersionGrant)).weights_version
        await rank.say(Published(weights_version=version, step=4))
        reject = await rank.hear(Reject)
        assert f"version {version} of step 4 was published, which was not granted" in reject.detail
        await rank.announce(version, 3)


@pytest.mark.parametrize(
    "message",
    [
        ShardWant(rank=3, num_ranks=2, step=0),
        OldLogprobs(step=0, positions=(0, 1), indices=(0,), lengths=(1, 1)),
        OldLogprobs(step=0, positions=(0,), indices=(0,), lengths=(5,)),
        Want(num_leases=1),
    ],
    ids=["rank", "columns", "lengths", "kind"],
)
async def test_no_message_of_a_rank_ends_the_coordinator(
    tmp_path: Path, open_intake: OpenIntake, message: Message
) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        rank = learner.rank()
        arrays = {name: np.zeros(2, dtype) for name, dtype in message.array_dtypes.items()}
        await rank.say(message, arrays)
        assert (await rank.hear(Reject)).reason == "invalid"
        await rank.say(VersionWant(step=3))
        await rank.hear(VersionGrant)


async def test_a_trainer_that_starts_again_is_counted_and_one_that_ends_leaves_its_last_step(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        ranks, rank = learner.coordinator.ranks, learner.rank()
        await rank.say(TrainerHello(rank=0, num_ranks=1, step=0))
        await rank.say(ShardWant(rank=0, num_ranks=1, step=0))
        await until(lambda: len(ranks.waiting) == 1)
        ranks.restart()
        assert (ranks.restarts, ranks.waiting, ranks.is_finished) == (1, {}, False)
        ranks.finish()
        assert ranks.is_finished
        assert learner.intake.ledger.meta("finished_step") == "0"
