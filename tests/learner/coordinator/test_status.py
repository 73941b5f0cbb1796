"""What a run leaves for people: metrics, warnings, status.json."""

import json
import time
from pathlib import Path

import pytest

from dcpo_async.metrics.health import health_of, is_running
from dcpo_async.metrics.jsonl import read_metrics
from dcpo_async.metrics.timeline import read_spans
from dcpo_async.protocol.messages import (
    Ack,
    Bye,
    LeaseFailed,
    VersionMessage,
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
from learner.scheduling.sessions import MAX_REFUSALS_A_VERSION
from tests.learner.coordinator.running import heartbeat, holding_one_lease, learning, trained_once, until
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


async def test_an_engine_that_disagrees_under_equal_weights_is_reported_and_again_at_twice_as_much(
    tmp_path: Path, open_intake: OpenIntake, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(tmp_path, updates=2, weights={"canary_bound": 0.02})
    async with learning(config, open_intake) as learner:
        rank, actor = await learner.publish(), learner.actor()
        await actor.join()
        for step, nats in enumerate((0.009, 0.011, 0.02, 0.023), start=1):
            await actor.say(heartbeat().model_copy(update={"canary_difference": nats}))
            await actor.hear(VersionMessage)
            # Whatever the tokens that were trained say: at a lag above 0 they differ as they should.
            await rank.say(StepDone(step=step, metrics={"lag_1/kl_behavior": 0.5}))
            await until(lambda step=step: learner.coordinator.ranks.step == step)  # type: ignore[misc]
    warnings = [record.getMessage() for record in caplog.records if "engine and learner disagree" in record.msg]
    assert [warning.partition(" from ")[0] for warning in warnings] == [
        f"step {step}: an engine's log-probs of the canary differ by {nats} nats"
        for step, nats in ((2, 0.011), (4, 0.023))
    ]
    assert [line["canary_difference"] for line in read_metrics(tmp_path)] == [0.009, 0.011, 0.02, 0.023]


async def test_the_canarys_difference_is_the_largest_of_the_actors_and_each_is_in_the_status_file(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        await learner.publish()
        for name, nats in (("a", 1e-6), ("b", 3e-6), ("c", None)):
            actor = learner.actor(name)
            await actor.join()
            await actor.say(heartbeat().model_copy(update={"canary_difference": nats}))
            await actor.hear(VersionMessage)
        learner.coordinator.status.write()
        assert learner.coordinator.actors.metrics()["canary_difference"] == 3e-6
    status = json.loads((tmp_path / "status.json").read_text())
    found = {entry["session"]: entry["canary_difference"] for entry in status["actors_connected"]}
    assert (found, status["canary_difference"]) == ({"a": 1e-6, "b": 3e-6, "c": None}, 3e-6)


async def test_how_full_actors_are_is_in_the_status_file_of_each_and_summed_in_the_metrics(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        await learner.publish()
        for name, (responses, capacity, preemptions) in {"a": (30, 32, 4), "b": (5, 64, 0)}.items():
            actor = learner.actor(name)
            await actor.join()
            load = {"responses_in_flight": responses, "response_capacity": capacity, "preemptions": preemptions}
            await actor.say(heartbeat().model_copy(update=load))
            await actor.hear(VersionMessage)
        learner.coordinator.status.write()
        metrics = learner.coordinator.actors.metrics()
    names = ("responses_in_flight", "response_capacity", "preemptions")
    assert [metrics[name] for name in names] == [35.0, 96.0, 4.0]
    status = json.loads((tmp_path / "status.json").read_text())
    assert [(actor["responses_in_flight"], actor["response_capacity"]) for actor in status["actors_connected"]] == [
        (30, 32),
        (5, 64),
    ]


async def test_refusals_are_counted_once_for_each_session_and_stay_when_it_leaves(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        await learner.publish()
        actors = learner.coordinator.actors
        for name, refusals in (("a", 1), ("b", 2)):
            actor = learner.actor(name)
            await actor.join()
            for _ in range(2):
                await actor.say(heartbeat().model_copy(update={"canary_refusals": refusals}))
                await actor.hear(VersionMessage)
        assert actors.metrics()["canary_refusals"] == 3
        await actor.say(Bye(reason="refused", canary_refusals=3))
        await until(lambda: len(actors.connected) == 1)
        assert actors.metrics()["canary_refusals"] == 4
        liar = learner.actor("liar")
        await liar.join()
        await liar.say(heartbeat().model_copy(update={"canary_refusals": 1 << 40}))
        await liar.hear(VersionMessage)
        assert actors.metrics()["canary_refusals"] == 4 + MAX_REFUSALS_A_VERSION
        assert "canary_difference" not in actors.metrics()


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


async def test_a_learner_that_comes_back_is_at_the_step_of_its_checkpoint_before_its_ranks_say_so(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    for step in (4, 8):
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    async with learning(make_config(tmp_path), open_intake) as learner:
        assert learner.coordinator.status.content()["step"] == 8
        assert learner.coordinator.status.content()["unsaved_steps"] == 0
        await learner.publish(step=4)
        assert learner.coordinator.status.content()["step"] == 4, "the newest one was not on every machine"


async def test_the_status_file_says_when_and_by_whom_it_was_written_how_fast_it_goes_and_when_it_is_over(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    config = make_config(tmp_path, training={"max_steps": 10})
    async with learning(config, open_intake) as learner:
        rank = await learner.publish()
        for step in (1, 2, 3):
            learner.wait(4)
            await rank.say(StepDone(step=step, metrics={}))
            await until(lambda step=step: learner.coordinator.ranks.step == step)  # type: ignore[misc]
        learner.coordinator.status.write()
        status = json.loads((tmp_path / "status.json").read_text())
        assert health_of(status, time.time(), is_running(status)).is_live
        assert (status["seconds_per_step"], status["eta_seconds"], status["is_over"]) == (4.0, 28.0, False)
        await learner.coordinator.end("the learner stops")
        # The watch may be about to write once more.
        learner.coordinator.status.write()
    status = json.loads((tmp_path / "status.json").read_text())
    assert health_of(status, time.time(), is_running(status)).state == "stopped"


async def test_the_advice_is_of_the_newest_steps_and_of_how_full_actors_are(
    tmp_path: Path, open_intake: OpenIntake
) -> None:
    async with learning(make_config(tmp_path), open_intake) as learner:
        rank, actor = await learner.publish(), learner.actor()
        await actor.join()
        await actor.say(heartbeat().model_copy(update={"responses_in_flight": 2, "response_capacity": 10}))
        await actor.hear(VersionMessage)
        await rank.say(StepDone(step=1, metrics={"step_seconds": 3.0, "wait_seconds": 0.1}))
        await until(lambda: learner.coordinator.ranks.step == 1)
        for _ in range(3):
            learner.coordinator.status.write()
    advice = json.loads((tmp_path / "status.json").read_text())["advice"]
    assert advice.startswith("The trainer is the bottleneck: actors have ")
    assert advice.endswith(" Fewer actors would do, or a lower lag.max_lag at no cost.")


async def test_what_actors_and_ranks_took_is_in_the_timeline(tmp_path: Path, open_intake: OpenIntake) -> None:
    async with learning(make_config(tmp_path, groups_per_step=1), open_intake) as learner:
        await learner.publish()
        actor = learner.actor()
        await actor.join()
        await actor.say(heartbeat().model_copy(update={"weights_version": 1, "update": (2.0, 0.5, 1.0)}))
        await actor.hear(VersionMessage)
    spans = {(span.process, span.name): span for span in read_spans(tmp_path / "timing")}
    fetch, pause = spans["a", "fetch"], spans["a", "pause"]
    assert (fetch.seconds, pause.seconds) == (2.0, 0.5)
    assert fetch.start + fetch.seconds == pytest.approx(pause.start, abs=0.05)


async def test_quarantined_prompts_are_told_with_the_reason(tmp_path: Path, open_intake: OpenIntake) -> None:
    async with learning(make_config(tmp_path, actor={"max_failures": 1}), open_intake) as learner:
        actor, lease = await holding_one_lease(learner)
        await actor.say(
            LeaseFailed(position=lease.position, attempt=lease.attempt, reason="too long", is_prompts_fault=True)
        )
        await until(lambda: bool(learner.intake.quarantined))
        learner.coordinator.status.write()
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["quarantined"] == [
        {"prompt_id": lease.prompt_id, "position": 0, "reason": "failed 1 times, on here; at last: too long"}
    ]
