"""An engine that hangs is found by its steps, and ended; what heartbeats tell of the work."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from actor.engine.interface import UpdateTiming
from actor.engine.scripted import ScriptedEngine
from actor.progress import Standstill
from dcpo_async.errors import EngineError
from learner.scheduling.leases import SlotState
from tests.actor.test_service import SLOW, serving, until
from tests.actor.world import World

QUICK_STALL = {"actor": {"engine_stall_seconds": 0.4}}


def test_an_engine_stands_still_while_it_has_work_and_no_sign_changes() -> None:
    standstill = Standstill()
    assert standstill.seconds((7, 0), True, now=0.0) == 0.0
    assert standstill.seconds((7, 0), True, now=1.0) == 1.0
    assert standstill.seconds((7, 0), True, now=2.5) == 2.5
    assert standstill.seconds((7, 1), True, now=3.0) == 0.0
    assert standstill.seconds((7, 1), True, now=4.0) == 1.0
    assert standstill.seconds((7, 1), False, now=5.0) == 0.0
    assert standstill.seconds((7, 1), True, now=6.0) == 1.0


def test_a_process_that_was_stopped_itself_does_not_blame_its_engine() -> None:
    standstill = Standstill()
    standstill.seconds((7,), True, now=0.0)
    assert standstill.seconds((7,), True, now=500.0) == 2.0


async def test_an_engine_that_hangs_ends_the_actor_and_its_leases_go_to_another(tmp_path: Path) -> None:
    async with World(tmp_path, **QUICK_STALL) as world:
        engine = ScriptedEngine(tokens_per_second=SLOW, hang_after_groups=2)
        async with serving(world.actor(engine)) as life:
            await world.publish(0)
            with pytest.raises(EngineError, match=r"scripted hangs: no step for .* s after \d+, with \d+ responses"):
                await asyncio.wait_for(life, 20.0)
        await until(lambda: not world.coordinator.actors.connected)
        assert world.intake.counts["lease_failures"] == 0
        assert SlotState.LEASED not in {slot.state for slot in world.intake.table.open_slots}
        async with serving(world.actor()):
            await until(lambda: world.ledger.num_groups == 4)


async def test_an_engine_without_work_or_with_new_weights_on_the_way_in_does_not_hang(tmp_path: Path) -> None:
    class SlowToAdopt(ScriptedEngine):
        is_adopting = False

        @property
        def signs_of_work(self) -> tuple[int, ...]:
            return (0,) if self.is_adopting or not self.running_tokens else super().signs_of_work

        async def adopt(self, *of_the_version: Any) -> UpdateTiming:
            self.is_adopting = True
            await asyncio.sleep(0.8)
            self.is_adopting = False
            return await super().adopt(*of_the_version)

    async with World(tmp_path, **QUICK_STALL) as world:
        engine = SlowToAdopt(tokens_per_second=SLOW / 10)
        async with serving(world.actor(engine)) as life:
            await world.publish(0)
            await until(lambda: len(engine.running_tokens) == 4)
            await world.publish(1)
            await until(lambda: engine.weights_version == 2 and world.ledger.num_groups == 4)
            await asyncio.sleep(0.6)
            assert not life.done()


async def test_heartbeats_tell_how_far_each_lease_is(tmp_path: Path) -> None:
    async with World(tmp_path) as world:
        actor = world.actor(ScriptedEngine(tokens_per_second=SLOW / 40))
        async with serving(actor):
            await world.publish(0)
            await until(lambda: actor.session.activity == "generating")
            await until(lambda: any(slot.tokens for slot in world.intake.table.open_slots))
            await until(lambda: world.ledger.num_groups == 4, within_seconds=20.0)
            await until(lambda: actor.session.activity == "idle")
            (desk,) = world.coordinator.actors.connected.values()
            await until(lambda: desk.activity == "idle")
