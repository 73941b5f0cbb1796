"""Versions measured by the actors of a run: real coordinator, weight server and actors, in one process."""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actor.engine.scripted import ScriptedEngine
from actor.weights_follower import Staying, attested
from dcpo_async.errors import WeightsError
from dcpo_async.evaluation.results import SUMMARY_NAME
from dcpo_async.metrics.jsonl import read_metrics
from dcpo_async.records import EvaluationTerms, Hold, Lease, Prompt, Response, VersionSegment
from dcpo_async.weights.places import version_folder
from dcpo_async.weights.store import discard_unused, verify
from learner.evaluations.problems import HeldOut
from learner.ledger.reader import evaluation_results, evaluations
from tests.actor.test_service import serving, versions_of
from tests.actor.test_service import until as until_within
from tests.actor.world import World
from tests.learner.small_run import VOCAB_SIZE

NUM_PROBLEMS, SAMPLES = 12, 2
SLOW = 20.0
"""Tokens a second at which a response of 8 takes up to 0.4 s; an engine has places for four."""


def held_out() -> HeldOut:
    prompts = tuple(Prompt(f"held-{i}", f"held {i}", str(i), (i, 1)) for i in range(NUM_PROBLEMS))
    return HeldOut({"sums": prompts}, VOCAB_SIZE, {"samples": SAMPLES})


@asynccontextmanager
async def measuring(folder: Path, **evaluation: object) -> AsyncIterator[World]:
    """A learner that measures each version which is published between two evaluations."""
    settings = {"every_steps": 1, "data": ("sums.jsonl",), "samples": SAMPLES, "max_share": 0.5, **evaluation}
    world = World(folder, evaluation=settings, actor={"groups_in_flight": 2})
    world.held_out = held_out()
    async with world:
        yield world


async def until(happened: Callable[[], bool]) -> None:
    await until_within(happened, within_seconds=60.0)


def states(world: World) -> list[tuple[int, str]]:
    """Version and state of each evaluation."""
    return [(row.weights_version, row.state) for row in evaluations(world.ledger)]


def answered(world: World, evaluation: int = 1) -> dict[int, Any]:
    return evaluation_results(world.ledger, evaluation)


def summary(world: World) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((world.config.folder / "evaluation" / SUMMARY_NAME).read_text())
    return found


async def test_an_actor_stays_at_the_version_until_all_is_answered_and_trains_under_it_meanwhile(
    tmp_path: Path,
) -> None:
    engine = ScriptedEngine(tokens_per_second=SLOW)
    async with measuring(tmp_path) as world, serving(service := world.actor(engine)):
        await until(lambda: len(world.coordinator.actors.connected) == 1)
        await world.publish(0)
        await until(lambda: len(answered(world)) >= 1)
        await world.publish(1)
        assert states(world) == [(1, "running")]
        assert not discard_unused(version_folder(world.store, 1)), "whoever starts later can still come to it"
        await until(lambda: states(world) == [(1, "complete")])
        # max_lag 1: four groups of step 0's weights are the window, and were made beside the evaluation.
        await until(lambda: world.ledger.num_groups >= 4)
        assert versions_of(world)[:4] == [(1,)] * 4
        await until(lambda: engine.weights_version == 2)
        await until(lambda: discard_unused(version_folder(world.store, 1)))
        assert sorted(answered(world)) == list(range(NUM_PROBLEMS))
        assert world.intake.counts["groups_invalid"] == world.intake.counts["groups_superseded"] == 0
        rewards = [reward for one in answered(world).values() for reward in one["rewards"]]
        (entry,) = summary(world).values()
        assert entry["sets"]["sums"]["sampled"]["accuracy"]["mean"] == sum(rewards) / len(rewards)
        assert (entry["step"], entry["weights_version"], entry["run"]) == (0, 1, world.run_id)
        (line,) = read_metrics(world.config.folder / "evaluation")
        assert line["sums/avg@2"] == line["sums/reward"] == sum(rewards) / len(rewards)
        assert verify(tmp_path / "evaluation" / "best").weights_version == 1
        assert service.session.hold is None
        status = world.coordinator.actors.evaluations.status()
        assert status is not None
        assert status["running"] is None
        assert status["last"]["figures"]["sums/avg@2"] == line["sums/avg@2"]


async def test_a_learner_that_was_killed_counts_each_problem_once_and_the_actor_stays_meanwhile(tmp_path: Path) -> None:
    engine = ScriptedEngine(tokens_per_second=SLOW)
    async with measuring(tmp_path, max_share=0.1) as world, serving(world.actor(engine)):
        await until(lambda: len(world.coordinator.actors.connected) == 1)
        await world.publish(0)
        await until(lambda: len(answered(world)) >= 2)
        before = answered(world)
        await world.stop()
        world.start()
        assert states(world) == [(1, "running")]
        kept = answered(world)
        assert before.items() <= kept.items()
        assert len(kept) < NUM_PROBLEMS
        # The trainer publishes what it goes on from; who measures does not go there.
        assert await world.publish(0) == 2
        await until(lambda: states(world) == [(1, "complete")])
        found = answered(world)
        assert kept.items() <= found.items()
        assert sorted(found) == list(range(NUM_PROBLEMS))
        assert world.coordinator.actors.evaluations.counts["evaluation_accepted"] == NUM_PROBLEMS - len(kept)
        await until(lambda: engine.weights_version == 2)
        assert [row["weights_version"] for row in summary(world).values()] == [1]


async def test_what_an_actor_had_that_vanished_is_answered_by_another_that_stays(tmp_path: Path) -> None:
    engines = [ScriptedEngine(tokens_per_second=SLOW) for _ in range(2)]
    async with measuring(tmp_path, max_share=1.0) as world, serving(world.actor(engines[0])):
        async with serving(world.actor(engines[1])):
            await until(lambda: len(world.coordinator.actors.connected) == 2)
            await world.publish(0)
            await until(lambda: len(answered(world)) >= 2)
        await world.publish(1)
        await until(lambda: states(world) == [(1, "complete")])
        assert sorted(answered(world)) == list(range(NUM_PROBLEMS))
        assert len(world.coordinator.actors.connected) == 1


async def test_an_evaluation_that_nobody_can_finish_ends_as_incomplete_and_has_no_accuracy(tmp_path: Path) -> None:
    engine = ScriptedEngine(tokens_per_second=SLOW)
    async with measuring(tmp_path, hold_seconds=3.0) as world:
        async with serving(world.actor(ScriptedEngine(tokens_per_second=4.0))):
            await until(lambda: len(world.coordinator.actors.connected) == 1)
            await world.publish(0)
            await until(lambda: states(world) == [(1, "running")])
        async with serving(world.actor(engine)):
            await world.publish(1)
            await until(lambda: states(world)[0] == (1, "incomplete"))
            assert evaluations(world.ledger)[0].reason == "no engine has answered the rest within 3 s"
            assert not (tmp_path / "evaluation" / SUMMARY_NAME).exists()
            (line,) = read_metrics(tmp_path / "evaluation")
            assert line.keys() == {"step", "seconds", "answered_share"}
            await until(lambda: engine.weights_version == 2)
            # The next version is measured by who is there.
            await world.publish(2)
            await until(lambda: (3, "complete") in states(world))


async def test_an_actor_that_starts_in_the_middle_of_an_evaluation_comes_to_its_version(tmp_path: Path) -> None:
    async with measuring(tmp_path) as world:
        await world.publish(0)
        await world.publish(1)
        assert states(world) == [(1, "running")]
        engine = ScriptedEngine(tokens_per_second=SLOW)
        async with serving(world.actor(engine)):
            await until(lambda: len(answered(world)) >= 1)
            assert engine.weights_version == 1
            await until(lambda: states(world) == [(1, "complete")])
            await until(lambda: engine.weights_version == 2)


async def test_other_problems_or_settings_are_not_mixed_into_an_evaluation_that_was_begun(tmp_path: Path) -> None:
    async with measuring(tmp_path, keep_best=False) as world:
        await world.publish(0)
        await world.stop()
        world.held_out = HeldOut({"sums": held_out().sets["sums"][1:]}, VOCAB_SIZE, {"samples": SAMPLES})
        world.start()
        await world.publish(0)
        assert states(world)[0] == (1, "incomplete")
        assert evaluations(world.ledger)[0].reason == "what is measured, or how, has changed since"
        assert states(world)[1:] == []


def lease(version: int = 4) -> Lease:
    return Lease(0, 1, "p", 1, version, np.array([1], np.int32), "1", terms=EvaluationTerms(version, 1, 1.0))


def answers(versions: Sequence[int]) -> tuple[Response, ...]:
    segments = tuple(VersionSegment(version, 1) for version in versions)
    numbers = np.zeros(len(segments), np.int32)
    return (Response(numbers, numbers.astype(np.float32), segments, "stop", ""),)


def test_responses_of_the_version_alone_answer_an_evaluation() -> None:
    attested(lease(), answers([4, 4]))
    with pytest.raises(WeightsError, match=r"version 4 is to be measured, \[4, 5\] have answered"):
        attested(lease(), answers([4, 5]))


def test_an_engine_stays_for_as_long_as_it_was_asked_to_and_never_goes_back() -> None:
    staying = Staying()
    assert staying.wanted(None, has=3, now=0.0) == 0
    assert staying.wanted(Hold(4, 60.0), has=3, now=0.0) == 4
    assert staying.wanted(Hold(4, 60.0), has=4, now=10.0) is None
    assert staying.wanted(Hold(4, 60.0), has=4, now=69.0) is None
    assert staying.seconds_left(69.0) == 1.0
    assert staying.wanted(Hold(4, 60.0), has=4, now=70.0) == 0
    assert staying.wanted(Hold(4, 60.0), has=5, now=71.0) == 0
    assert staying.wanted(Hold(7, 60.0), has=0, now=80.0) == 7


async def test_a_learner_that_is_away_for_longer_lets_the_actor_go_on_by_itself(tmp_path: Path) -> None:
    engine = ScriptedEngine(tokens_per_second=SLOW)
    async with measuring(tmp_path, hold_seconds=1.0, max_share=0.1) as world, serving(service := world.actor(engine)):
        await until(lambda: len(world.coordinator.actors.connected) == 1)
        await world.publish(0)
        await until(lambda: engine.weights_version == 1)
        await world.publish(1)
        await until(lambda: engine.weights_version == 2)
        assert service.session.weights_version == 2


async def test_what_cannot_be_written_down_is_told_and_is_written_down_by_the_next_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocking = tmp_path / "evaluation" / SUMMARY_NAME
    async with measuring(tmp_path) as world, serving(world.actor()):
        await until(lambda: len(world.coordinator.actors.connected) == 1)
        blocking.mkdir()
        await world.publish(0)
        await until(lambda: "cannot be written down, training goes on" in caplog.text)
        await until(world.coordinator.actors.evaluations.over.is_set)
        assert states(world) == [(1, "running")]
        assert len(answered(world)) == NUM_PROBLEMS
        assert not blocking.is_file()
        await until(lambda: world.ledger.num_groups == 4)
        await world.stop()
        blocking.rmdir()
        world.start()
        await until(lambda: states(world) == [(1, "complete")])
        assert len(summary(world)) == 1
