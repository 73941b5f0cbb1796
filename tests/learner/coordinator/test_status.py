"""What a run leaves for people: metrics, warnings, status.json."""

import json
from pathlib import Path

import pytest

from dcpo_async.metrics.jsonl import read_metrics
from dcpo_async.protocol.messages import (
    Ack,
    Want,
)
from dcpo_async.protocol.trainer_messages import (
    ShardMessage,
    ShardWant,
    StepDone,
    TrainerHello,
    VersionGrant,
    VersionWant,
)
from tests.learner.coordinator.running import holding_one_lease, learning, trained_once, until
from tests.learner.small_run import OpenIntake, make_config


async def test_a_step_leaves_one_line_of_metrics_with_those_of_its_batch(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with learning(make_config(tmp_path, groups_per_step=1), open_intake) as learner:
        rank = await trained_once(learner, 1)
        await rank.say(ShardWant(rank=0, num_ranks=1, step=0))
        await rank.hear(ShardMessage)
        for _ in range(2):
            await rank.say(StepDone(step=1, metrics={"loss": 0.25}))
        await until(lambda: learner.coordinator.ranks.step == 1)
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
        await until(lambda: learner.coordinator.ranks.step == 7)
    warnings = [record.getMessage() for record in caplog.records if "engine and learner disagree" in record.msg]
    assert [warning.partition(",")[0] for warning in warnings] == [
        f"step {step}: tokens sampled by the very weights that train them have a kl_behavior of {nats} nats"
        for step, nats in ((3, 0.02), (7, 0.05))
    ]


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
            await until(lambda: learner.coordinator.ranks.step == 1)
    (line,) = read_metrics(tmp_path)
    assert (line["loss"], line["reward"]) == (0.75, 0.5)


async def test_the_status_file_says_who_is_connected_and_how_far_the_run_is(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        actor, lease = await holding_one_lease(learner)
        await actor.send_group(lease)
        await actor.hear(Ack)
        await actor.say(Want(num_leases=1))
        await actor.lease()
        learner.coordinator.status.write()
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["run_id"], status["weights_version"], status["groups_counted"]) == ("run", 1, 1)
    (entry,) = status["actors_connected"]
    assert (entry["session"], entry["host"], entry["engine"], entry["groups_accepted"]) == ("a", "here", "scripted", 1)
    assert (entry["leases"], status["groups_leased"], status["groups_waiting"]) == (1, 1.0, 1.0)
