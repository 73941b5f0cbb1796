"""Sources of one run that are graded differently: by actors, by the intake, and by the learner that grades again."""

import asyncio
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from actor.service import ActorService
from dcpo_async.config import RunConfig
from dcpo_async.errors import ConfigError
from dcpo_async.grading.rewards import GradingBySource, grading_of, resolved_rewards, source_digest
from dcpo_async.protocol.codec import decode, encode
from dcpo_async.protocol.conversion import lease_from_message, lease_to_message, made_by, welcome_of
from dcpo_async.protocol.messages import Envelope, LeaseMessage, Welcome
from dcpo_async.records import Lease, Prompt
from learner.coordinator.intake import Intake
from learner.coordinator.regrading import Regrader
from learner.evaluations.problems import HeldOut
from learner.ledger.ledger import Ledger
from learner.ledger.reader import evaluation_results, evaluations
from learner.problems import training_problems, with_names
from learner.run_setup import prepare
from learner.sizing.report import grading_line
from tests.actor.test_service import serving, until
from tests.actor.world import World
from tests.learner.small_run import VOCAB_SIZE, answer, leases_of, make_config, make_prompts, publish
from tests.tiny_model import make_tiny_model

BY_LENGTH, BY_WORD = (f"tests.grading.rewards.examples:{name}" for name in ("by_length", "what_it_says"))
SOURCES = [
    {"source": "a.jsonl", "name": "own", "reward": BY_LENGTH},
    {"source": "b.jsonl", "name": "boxed", "extraction": "boxed"},
    {"source": "c.jsonl", "name": "again", "reward": BY_LENGTH},
]
MIXED = [replace(prompt, source=("own", "boxed")[i % 2]) for i, prompt in enumerate(make_prompts(16))]


def positions(world: World) -> list[int]:
    return [row.position for row in world.ledger.visits("accepted")]


def config_of(folder: Path, **sections: dict[str, object]) -> RunConfig:
    values = {"grading": {"workers": 1}, "model": {"dtype": "float32"}, **sections}
    return resolved_rewards(make_config(folder, data={"sources": SOURCES}, **values))


async def test_each_source_is_graded_by_its_own_and_grading_again_agrees(tmp_path: Path) -> None:
    sections = {"data": {"sources": SOURCES}, "grading": {"workers": 1}, "actor": {"regrade_share": 1.0}}
    world = World(tmp_path, **sections)
    world.prompts, world.config = MIXED, resolved_rewards(world.config)
    async with world:
        await world.publish(0)
        actor: ActorService = world.actor()
        actor._make_grading = lambda welcome: grading_of(welcome.grading, welcome.grading_by_source)
        running = asyncio.create_task(actor.run())
        async with asyncio.timeout(90.0):
            while len({world.intake.prompt_at(place).source for place in positions(world)}) < 2:  # noqa: ASYNC110 - nor has a ledger
                await asyncio.sleep(0.01)
            while world.intake.counts["regraded"] < 2 * len(positions(world)):  # noqa: ASYNC110 - a count has no event
                await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        stored = {world.intake.prompt_at(place).source: world.ledger.read_group(place) for place in positions(world)}
    own, boxed = stored["own"], stored["boxed"]
    lengths = [len(response.token_ids) for response in own.group.responses]
    assert list(own.rewards) == [round(min(1.0, length / 7) * 10**9) / 10**9 for length in lengths]
    assert set(boxed.rewards) <= {0.0, 1.0}
    assert set(boxed.group.reasons) <= {"no_answer", "different", "equal"}
    assert world.intake.counts["regrade_disagreements"] == 0


async def test_what_a_run_measures_is_graded_by_its_own_grading_whatever_its_sources_have(tmp_path: Path) -> None:
    evaluation = {"every_steps": 1, "data": ("sums.jsonl",), "samples": 2}
    world = World(tmp_path, data={"sources": SOURCES}, grading={"workers": 1}, evaluation=evaluation)
    world.prompts, world.config = MIXED, resolved_rewards(world.config)
    prompts = tuple(Prompt(f"held-{i}", f"held {i}", str(i), (i, 1)) for i in range(3))
    world.held_out = HeldOut({"sums": prompts}, VOCAB_SIZE, {"samples": 2})
    async with world:
        actor: ActorService = world.actor()
        actor._make_grading = lambda welcome: grading_of(welcome.grading, welcome.grading_by_source)
        async with serving(actor):
            await until(lambda: len(world.coordinator.actors.connected) == 1, within_seconds=60.0)
            await world.publish(0)
            await until(lambda: [row.state for row in evaluations(world.ledger)] == ["complete"], within_seconds=60.0)
        found = evaluation_results(world.ledger, 1)
    assert sorted(found) == [0, 1, 2]
    assert {reward for one in found.values() for reward in one["rewards"]} <= {0.0, 1.0}


def test_a_single_table_of_sources_is_graded_as_it_says(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "model", 0)
    problems = tmp_path / "sums.jsonl"
    problems.write_text("\n".join(json.dumps({"problem": f"{i}+1=", "answer": str(i + 1)}) for i in range(9)))
    data = {"sources": [{"source": str(problems), "reward": BY_LENGTH}], "system_prompt": "", "max_prompt_tokens": 20}
    model = {"path": str(tmp_path / "model"), "dtype": "float32"}
    config = make_config(tmp_path / "run", groups_per_step=1, max_lag=3, data=data, model=model)
    config = resolved_rewards(config.model_copy(update={"data": with_names(config.data)}))
    prompts = prepare(config, training_problems(config.data)).prompts.encoded.prompts
    assert {config.grading_of(prompt.source).reward for prompt in prompts} == {BY_LENGTH}


def test_a_group_may_have_the_rewards_of_its_own_source_alone(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    ledger = Ledger(tmp_path / "ledger")
    intake = Intake(config, MIXED, VOCAB_SIZE, ledger)
    version = publish(intake, step=0)
    outcomes = {}
    for lease in leases_of(intake, at_most=2):
        group = answer(lease, version, rewards=(0.25, 0.0), made_by=made_by(welcome_of(config, 1, 1)))
        outcomes[lease.source] = intake.accept(b"a", group).detail
    ledger.close()
    assert outcomes == {"own": "", "boxed": "reward 0.25 of response 0, allowed are [0.0, 1.0]"}


def test_welcome_and_lease_carry_the_source_and_another_digest_marks_the_groups(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    heard = decode(encode(Envelope(welcome_of(config, 1, 1))), 1 << 20).message
    assert isinstance(heard, Welcome)
    assert heard.grading_by_source == config.grading_by_source
    assert heard.grading_by_source["own"].reward_digest == source_digest(BY_LENGTH)
    first = config.data.sources[0].model_copy(update={"reward_digest": "0" * 16})
    data = config.data.model_copy(update={"sources": (first, *config.data.sources[1:])})
    assert made_by(heard) != made_by(welcome_of(config.model_copy(update={"data": data}), 1, 1))
    message, arrays = lease_to_message(Lease(5, 1, "p", 3, 2, MIXED[0].token_ids, "42", source="own"))  # type: ignore[arg-type]
    back = decode(encode(Envelope(message, arrays)), 1 << 20)
    assert isinstance(back.message, LeaseMessage)
    assert lease_from_message(back.message, back.arrays).source == "own"


def test_the_start_says_what_grades_each_source(tmp_path: Path) -> None:
    assert grading_line(config_of(tmp_path)) == f"graded by: own {BY_LENGTH}; boxed boxed; again {BY_LENGTH}"
    assert grading_line(make_config(tmp_path)) == "graded by: answer"


def test_sources_that_are_graded_alike_share_their_workers(tmp_path: Path) -> None:
    grading = GradingBySource(config_of(tmp_path).grading_by_source)
    assert len(grading._pools) == 2
    grading.close()


def test_another_source_of_one_reward_is_refused_at_the_start_of_the_learner_and_of_an_actor(tmp_path: Path) -> None:
    other = [{**SOURCES[0], "reward_digest": "0" * 16}, SOURCES[1]]
    found = source_digest(BY_LENGTH)
    with pytest.raises(ConfigError, match=f"its source here has digest {found}, the run's has {'0' * 16}"):
        resolved_rewards(make_config(tmp_path, data={"sources": other}))
    heard = make_config(tmp_path, data={"sources": other}).grading_by_source
    with pytest.raises(ConfigError, match=f"its source here has digest {found}"):
        GradingBySource(heard, 1)
    with pytest.raises(ConfigError, match="has no function none"):
        resolved_rewards(make_config(tmp_path, data={"sources": [{**SOURCES[0], "reward": f"{BY_WORD[:-12]}none"}]}))


def test_what_does_not_repeat_itself_is_not_graded_again_and_the_others_are(tmp_path: Path) -> None:
    sources = [{**SOURCES[0], "reward_repeats": False}, SOURCES[1]]
    config = make_config(tmp_path, data={"sources": sources}, actor={"regrade_share": 1.0})
    regrader = Regrader(config, Counter())
    group = answer(Lease(0, 1, "p", 1, 0, MIXED[0].token_ids, "4"), 1)  # type: ignore[arg-type]
    for prompt in MIXED[:2]:
        regrader.sample(group.message, group.arrays, prompt)  # type: ignore[arg-type]
    waiting = [regrader._waiting.get_nowait()[1].source for _ in range(regrader._waiting.qsize())]
    assert waiting == ["boxed", "boxed"]
