"""The whole life of an actor with a real coordinator and weight server, without a process or a socket."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from actor.engine.scripted import ScriptedEngine
from actor.service import ActorService
from actor.weights.cache import default_cache_folder
from actor.weights_follower import WeightsPlan
from dcpo_async.errors import (
    CanaryError,
    EngineError,
    OutdatedError,
    RefusedError,
    UnreachableError,
    UnsoundError,
    UnusableError,
)
from dcpo_async.weights.canary import Canary
from dcpo_async.weights.places import version_folder, versions
from dcpo_async.weights.store import discard_unused
from learner.scheduling.leases import SlotState
from tests.actor.world import ADDRESS, World

CANARY = Canary(token_ids=(3, 1, 2), logprobs=(-1.0, -2.0), bound=1e-3)
SLOW = 100.0
"""Tokens per second at which a response of 8 takes up to 0.08 s."""


@asynccontextmanager
async def serving(actor: ActorService) -> AsyncIterator["asyncio.Task[None]"]:
    """An actor at work; whatever a test does, it ends with the block."""
    task = asyncio.create_task(actor.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(happened: Callable[[], bool], within_seconds: float = 5.0) -> None:
    async with asyncio.timeout(within_seconds):
        while not happened():  # noqa: ASYNC110 - ledger and coordinator have no event for a test
            await asyncio.sleep(0.005)


def versions_of(world: World) -> list[tuple[int, ...]]:
    """For each counted group in lease order the versions that its responses carry."""
    groups = [world.ledger.read_group(row.position).group for row in world.ledger.visits("accepted")]
    return [tuple({span.weights_version for one in group.responses for span in one.segments}) for group in groups]


async def test_an_actor_joins_fills_the_window_and_follows_the_weights(tmp_path: Path) -> None:
    async with World(tmp_path) as world, serving(service := world.actor()):
        service.session.relay = "tcp://here:1"
        await until(lambda: len(world.coordinator.actors.connected) == 1)
        assert world.ledger.num_groups == 0
        await world.publish(0)
        # max_lag 1 and two groups to a step: weights of step 0 serve four groups.
        await until(lambda: world.ledger.num_groups == 4)
        assert world.intake.commit_batch(0)
        await world.publish(1)
        await until(lambda: world.ledger.num_groups == 6)
        assert versions_of(world) == [(1,)] * 4 + [(2,)] * 2
        (actor,) = world.coordinator.actors.connected.values()
        await until(lambda: actor.weights_version == 2)
        assert actor.groups_accepted == 6
        assert service.session.relay == "", "nothing is in the cache that a relay could hand on"
        # The store is on this machine: version 2 is used where it stands, and kept from being removed meanwhile.
        assert versions(default_cache_folder(world.run_id)) == []
        await until(lambda: discard_unused(version_folder(world.store, 1)))
        assert not discard_unused(version_folder(world.store, 2))
        assert world.intake.counts["groups_invalid"] == world.intake.counts["groups_duplicate"] == 0
    assert discard_unused(version_folder(world.store, 2))


async def test_rewards_are_those_of_the_texts(tmp_path: Path) -> None:
    async with World(tmp_path) as world, serving(world.actor(ScriptedEngine(correct_share=1.0))):
        await world.publish(0)
        await until(lambda: world.ledger.num_groups == 4)
        stored = [world.ledger.read_group(row.position) for row in world.ledger.visits("accepted")]
        assert [group.rewards for group in stored] == [(1.0, 1.0)] * 4
        assert all(group.group.reasons == ("equal", "equal") for group in stored)


async def test_a_draining_actor_finishes_what_it_holds_and_says_bye(tmp_path: Path) -> None:
    async with World(tmp_path) as world:
        actor = world.actor(ScriptedEngine(tokens_per_second=SLOW))
        async with serving(actor) as life:
            await world.publish(0)
            await until(lambda: actor.session.num_working == 4)
            actor.drain()
            await asyncio.wait_for(life, 5.0)
        assert world.ledger.num_groups == 4
        await until(lambda: not world.coordinator.actors.connected)
        assert world.intake.counts["leases_released"] == 0


async def test_an_actor_that_is_let_go_says_by_whom_and_what_it_finishes_and_leaves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with World(tmp_path) as world:
        actor = world.actor(ScriptedEngine(tokens_per_second=SLOW / 10))
        async with serving(actor) as life:
            await world.publish(0)
            await until(lambda: actor.session.num_working == 4)
            (name,) = world.coordinator.actors.connected
            world.coordinator.actors.rotation.drain(name, "dcpo drain, asked by somebody on a machine")
            world.coordinator.actors.untold.begin([name])
            await asyncio.wait_for(life, 5.0)
        assert world.ledger.num_groups == 4
        await until(lambda: not world.coordinator.actors.connected)
        assert world.intake.counts["leases_released"] == 0
    (said,) = [text for text in caplog.messages if "drained" in text]
    assert said == "drained (dcpo drain, asked by somebody on a machine): 4 leases are finished first"


async def test_one_slow_response_holds_one_place_while_others_are_taken_by_further_groups(tmp_path: Path) -> None:
    """Sixteen places, groups of eight: if a group kept its places to its end, two groups could be open."""
    sections = {"actor": {"groups_in_flight": 2}, "sampling": {"group_size": 8}}
    async with World(tmp_path, **sections) as world:
        actor = world.actor(ScriptedEngine(tokens_per_second=SLOW / 15))
        most_groups = most_responses = 0

        def look() -> bool:
            nonlocal most_groups, most_responses
            most_groups = max(most_groups, actor.session.num_working)
            most_responses = max(most_responses, actor.session.num_responses)
            return world.ledger.num_groups == 4

        async with serving(actor):
            await world.publish(0)
            await until(look)
            assert most_groups > 2
            assert most_responses == 16
            await until(lambda: actor.session.num_responses == 0)
            (desk,) = world.coordinator.actors.connected.values()
            await until(lambda: desk.response_capacity == 16 and desk.responses_in_flight == 0)
        assert world.intake.counts["groups_accepted"] == 4


async def test_an_actor_that_is_dismissed_ends_well(tmp_path: Path) -> None:
    async with World(tmp_path) as world, serving(world.actor()) as life:
        await until(lambda: len(world.coordinator.actors.connected) == 1)
        await world.coordinator.end("the run is finished")
        await asyncio.wait_for(life, 5.0)


async def test_an_actor_that_finds_another_run_at_its_address_is_refused_in_words(tmp_path: Path) -> None:
    async with World(tmp_path) as world, serving(world.actor()) as life:
        await until(lambda: len(world.coordinator.actors.connected) == 1)
        await world.stop()
        world.run_id = "another"
        world.start()
        with pytest.raises(RefusedError, match="this learner is on run another, the peer on run run-"):
            await asyncio.wait_for(life, 5.0)


async def test_an_actor_gives_up_where_no_learner_answers(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with serving(world.actor(join_seconds=0.1)) as life:
        with pytest.raises(UnreachableError, match=f"no answer from the learner at {ADDRESS} within 0.1 s"):
            await asyncio.wait_for(life, 5.0)


async def test_an_actor_works_on_through_a_restart_of_its_learner(tmp_path: Path) -> None:
    async with World(tmp_path) as world:
        engine = ScriptedEngine(tokens_per_second=SLOW)
        actor = world.actor(engine)
        async with serving(actor):
            await world.publish(0)
            await until(lambda: actor.session.num_working == 4)
            await world.stop()
            await until(lambda: len(actor.session.held) == 4 and actor.session.num_working < 4)
            world.start()
            await until(lambda: world.ledger.num_groups == 4)
            assert [row.attempt for row in world.ledger.visits("accepted")] == [1] * 4
            assert world.intake.commit_batch(0)
            await world.publish(1)
            await until(lambda: engine.weights_version == 2 and world.ledger.num_groups == 6)


async def test_a_dead_engine_ends_the_actor_and_gives_its_leases_back_at_once(tmp_path: Path) -> None:
    async with World(tmp_path) as world, serving(world.actor(ScriptedEngine(crash_after_groups=3))) as life:
        await world.publish(0)
        with pytest.raises(EngineError, match="has died"):
            await asyncio.wait_for(life, 5.0)
        await until(lambda: not world.coordinator.actors.connected)
        assert world.intake.counts["lease_failures"] == 0
        states = {slot.state for slot in world.intake.table.open_slots}
        assert SlotState.WAITING in states
        assert SlotState.LEASED not in states
        async with serving(world.actor()):
            await until(lambda: world.ledger.num_groups == 4)


async def test_the_learner_hears_how_far_each_version_in_an_engine_is_from_the_trainers(tmp_path: Path) -> None:
    engine = ScriptedEngine(canary_offsets={1: (1e-4, 0.0), 2: (0.5, 2e-4)})
    async with World(tmp_path) as world, serving(world.actor(engine)):
        await world.publish(0, CANARY)
        await until(lambda: world.ledger.num_groups == 4)
        (actor,) = world.coordinator.actors.connected.values()
        await until(lambda: actor.canary_difference is not None)
        assert actor.canary_difference == pytest.approx(1e-4)
        assert world.intake.commit_batch(0)
        # Refused at first, and held once the engine was started anew.
        await world.publish(1, CANARY)
        await until(lambda: actor.weights_version == 2)
        assert actor.canary_difference == pytest.approx(2e-4)
        assert world.coordinator.actors.metrics()["canary_refusals"] == 1


async def test_an_actor_whose_engine_cannot_hold_a_version_leaves_and_is_counted(tmp_path: Path) -> None:
    engine = ScriptedEngine(tokens_per_second=SLOW, canary_offsets={2: (0.5, 0.5)})
    async with World(tmp_path) as world, serving(world.actor(engine)) as life:
        await world.publish(0, CANARY)
        await until(lambda: world.ledger.num_groups == 4 and bool(world.intake.commit_batch(0)))
        await world.publish(1, CANARY)
        with pytest.raises(CanaryError, match=r"version 2 is not in .* differ by 0\.5 nats, at most 0\.001"):
            await asyncio.wait_for(life, 5.0)
        await until(lambda: not world.coordinator.actors.connected)
        assert world.coordinator.actors.metrics()["canary_refusals"] == 1
        assert SlotState.LEASED not in {slot.state for slot in world.intake.table.open_slots}


async def test_a_prompt_that_always_fails_is_given_back_by_name_and_quarantined(tmp_path: Path) -> None:
    async with World(tmp_path, actor={"max_failures": 2}) as world:
        first = world.intake.prompts["prompt-0"].id
        async with serving(world.actor(ScriptedEngine(fail_prompts={first}))):
            await world.publish(0)
            for step in range(8):
                await until(lambda step=step: world.intake.commit_batch(step))  # type: ignore[misc]
                if world.intake.quarantined:
                    break
                await world.publish(step + 1)
        assert list(world.intake.quarantined) == [0]
        assert world.intake.counts["lease_failures"] == 2


async def test_finished_groups_wait_for_a_learner_that_stops_and_count_when_it_is_back(tmp_path: Path) -> None:
    async with World(tmp_path) as world:
        engine = ScriptedEngine(tokens_per_second=SLOW)
        actor = world.actor(engine)
        async with serving(actor) as life:
            await world.publish(0)
            await until(lambda: actor.session.num_working == 4)
            await world.coordinator.end("the learner stops", dismiss=False)
            await world.stop()
            await until(lambda: actor.session.num_working == 0)
            assert not life.done()
            world.start()
            await until(lambda: world.ledger.num_groups == 4, within_seconds=20.0)
            assert [row.attempt for row in world.ledger.visits("accepted")] == [1] * 4


async def test_settings_that_need_no_new_engine_hold_from_the_next_lease_on(tmp_path: Path) -> None:
    """Groups of leases that were granted before are whole, by the settings of before, and do not count any more."""
    async with World(tmp_path) as world:
        actor = world.actor(ScriptedEngine(tokens_per_second=SLOW))
        async with serving(actor):
            await world.publish(0)
            await until(lambda: actor.session.num_working == 4)
            await world.stop()
            world.restart_with(sampling={"temperature": 0.5})
            await world.publish(0)
            await until(lambda: world.ledger.num_groups == 4, within_seconds=20.0)
            assert world.intake.counts["groups_superseded"] > 0
            assert world.intake.counts["groups_invalid"] == world.intake.counts["lease_failures"] == 0
            assert all(row.attempt > 1 for row in world.ledger.visits("accepted"))


@pytest.mark.parametrize(
    ("sections", "changed", "is_kept"),
    [
        ({"grading": {"extraction": "boxed"}}, "grading.extraction: answer → boxed", False),
        ({"sampling": {"max_response_tokens": 6}}, "sampling.max_response_tokens: 8 → 6", False),
        ({"actor": {"groups_in_flight": 3}}, "actor.groups_in_flight: 64 → 3", True),
    ],
)
async def test_settings_that_need_another_engine_end_the_actor_for_a_new_start(
    tmp_path: Path, sections: dict[str, dict[str, object]], changed: str, is_kept: bool
) -> None:
    async with World(tmp_path) as world:
        actor = world.actor(ScriptedEngine(tokens_per_second=SLOW))
        async with serving(actor) as life:
            await world.publish(0)
            await until(lambda: actor.session.num_working == 4)
            await world.stop()
            world.restart_with(**sections)
            with pytest.raises(OutdatedError, match=re.escape(changed)):
                await asyncio.wait_for(life, 20.0)
        await until(lambda: not world.coordinator.actors.connected)
        # What still counts is finished first; what another grader or sampler made is never counted.
        assert world.ledger.num_groups == (4 if is_kept else 0)
        assert SlotState.LEASED not in {slot.state for slot in world.intake.table.open_slots}
        await world.publish(0)
        async with serving(world.actor()):
            await until(lambda: world.ledger.num_groups == 4)


async def test_an_engine_without_the_version_that_its_leases_need_gives_them_back(tmp_path: Path) -> None:
    async with World(tmp_path) as world:
        engine = ScriptedEngine()
        actor = world.actor(engine)
        async with serving(actor):
            await world.publish(0)
            await until(lambda: world.ledger.num_groups == 4 and bool(world.intake.commit_batch(0)))
            version = await world.publish(1, is_spoilt=True)
            await until(lambda: not actor.session.takes_leases)
            await until(lambda: actor.session.num_working == 0)
            await until(lambda: all(slot.holder is None for slot in world.intake.table.open_slots))
            assert world.intake.counts["lease_failures"] == 0
            world.spoil(version)
            await until(lambda: world.ledger.num_groups == 6, within_seconds=30.0)
            assert engine.weights_version == version


async def test_leases_do_not_wait_for_a_weight_server_that_says_nothing(tmp_path: Path) -> None:
    async with World(tmp_path) as world:
        actor = world.actor(plan=WeightsPlan(patience_seconds=0.2))
        async with serving(actor):
            await world.publish(0)
            await until(lambda: world.ledger.num_groups == 4 and bool(world.intake.commit_batch(0)))
            await world.stop_weight_server()
            await world.publish(1)
            await until(lambda: not actor.session.takes_leases and actor.session.num_working == 0)
            await until(lambda: all(slot.holder is None for slot in world.intake.table.open_slots))
            assert world.intake.counts["lease_failures"] == 0


async def test_a_machine_that_can_never_keep_a_version_ends_its_engine_at_once(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    plan = WeightsPlan(folder_of=lambda run_id: cache / run_id)
    async with World(tmp_path) as world, serving(world.actor(plan=plan)) as life:
        await world.publish(0)
        with pytest.raises(UnusableError, match=r"others may write to .*cache; run chmod go-w on it"):
            await asyncio.wait_for(life, 5.0)


async def test_an_engine_whose_groups_are_refused_ends_for_a_new_start_and_blames_no_prompt(tmp_path: Path) -> None:
    async with World(tmp_path) as world, serving(world.actor(ScriptedEngine(nan_after_groups=1))) as life:
        await world.publish(0)
        with pytest.raises(UnsoundError, match=r"its groups are refused: log-probability nan.*; is its GPU healthy\?"):
            await asyncio.wait_for(life, 5.0)
        assert world.ledger.num_groups == 1
        assert world.intake.counts["lease_failures"] == 0
        assert not world.intake.quarantined
