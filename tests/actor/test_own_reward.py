"""An actor whose reward is of another source than the run's."""

import asyncio
from pathlib import Path

import pytest

from actor.service import ActorService
from dcpo_async.errors import ConfigError
from dcpo_async.grading.rewards import grading_of, source_digest
from tests.actor.world import World

REWARD = "tests.grading.rewards.examples:by_length"


async def test_it_ends_with_one_line_that_says_so(tmp_path: Path) -> None:
    grading = {"reward": REWARD, "reward_digest": "0" * 16}
    async with World(tmp_path, grading=grading) as world:
        actor: ActorService = world.actor()
        actor._make_grading = lambda welcome: grading_of(welcome.grading)
        found = source_digest(REWARD)
        with pytest.raises(ConfigError, match=f"its source here has digest {found}, the run's has {'0' * 16}"):
            await actor.run()


async def test_it_grades_by_the_runs_reward_where_the_source_is_the_same(tmp_path: Path) -> None:
    grading = {"reward": REWARD, "reward_digest": source_digest(REWARD), "workers": 1}
    async with World(tmp_path, grading=grading) as world:
        await world.publish(0)
        actor = world.actor()
        actor._make_grading = lambda welcome: grading_of(welcome.grading)
        running = asyncio.create_task(actor.run())
        async with asyncio.timeout(60.0):
            while not world.ledger.num_groups:  # noqa: ASYNC110 - the ledger has no event for a test
                await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        group = world.ledger.read_group(0)
        lengths = [len(response.token_ids) for response in group.group.responses]
        assert list(group.rewards) == [round(min(1.0, length / 7) * 10**9) / 10**9 for length in lengths]
