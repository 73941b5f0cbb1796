import asyncio
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actor.engine.scripted import ScriptedEngine
from dcpo_async.errors import CanaryError, EngineError, PromptError
from dcpo_async.grading import grade
from dcpo_async.records import Lease, Sampling, VersionSegment
from dcpo_async.weights.canary import Canary

SAMPLING = Sampling(group_size=64, temperature=1.0, max_response_tokens=8, seed=7)


def lease(prompt_id: str = "p", visit: int = 1, attempt: int = 1, answer: str = "12") -> Lease:
    return Lease(3, attempt, prompt_id, visit, 1, np.array([4, 5], np.int32), answer)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 64, "eos_token_id": 2}))
    return tmp_path


async def started(folder: Path, engine: ScriptedEngine) -> ScriptedEngine:
    await engine.start(folder, 5, None)
    return engine


async def test_another_attempt_at_a_visit_gives_the_same_group(folder: Path) -> None:
    engine, other = await started(folder, ScriptedEngine()), await started(folder, ScriptedEngine())
    first, again = await engine.generate(lease(), SAMPLING), await other.generate(lease(attempt=2), SAMPLING)
    for one, two in zip(first, again, strict=True):
        assert one.token_ids.tolist() == two.token_ids.tolist()
        assert one.behavior_logprobs.tolist() == two.behavior_logprobs.tolist()
        assert (one.text, one.finish_reason, one.segments) == (two.text, two.finish_reason, two.segments)


async def test_another_visit_prompt_or_seed_gives_another_group(folder: Path) -> None:
    engine = await started(folder, ScriptedEngine())
    groups = [
        await engine.generate(lease(), SAMPLING),
        await engine.generate(lease(visit=2), SAMPLING),
        await engine.generate(lease(prompt_id="q"), SAMPLING),
        await engine.generate(lease(), Sampling(64, 1.0, 8, seed=8)),
    ]
    assert len({str([response.token_ids.tolist() for response in group]) for group in groups}) == 4


async def test_responses_are_what_the_protocol_allows(folder: Path) -> None:
    engine = await started(folder, ScriptedEngine())
    group = await engine.generate(lease(), SAMPLING)
    for response in group:
        tokens = response.token_ids.tolist()
        assert (response.token_ids.dtype, response.behavior_logprobs.dtype) == (np.int32, np.float32)
        assert 1 <= len(tokens) <= 8
        assert all(0 <= token < 64 for token in tokens)
        assert np.all(
            (response.behavior_logprobs <= -math.log(64)) & (response.behavior_logprobs > -math.log(64) - 1.001)
        )
        assert response.segments == (VersionSegment(5, len(tokens)),)
        assert (2 in tokens) == (response.finish_reason == "stop")
        assert response.finish_reason == "stop" or len(tokens) == 8
    assert {response.finish_reason for response in group} == {"stop", "length"}


@pytest.mark.parametrize("answer", ["12", "-3", "\\frac{1}{2}", "x^2", "yes"])
async def test_the_grader_finds_about_the_given_share_right(folder: Path, answer: str) -> None:
    engine = await started(folder, ScriptedEngine(correct_share=0.25))
    group = await engine.generate(lease(answer=answer), SAMPLING)
    texts = [response.text for response in group]
    right = {text: grade(text, answer).correct for text in set(texts)}
    assert len(right) == 2
    assert 6 <= sum(right[text] for text in texts) <= 27


async def test_a_new_version_is_stamped_on_later_groups_and_changes_nothing_else(folder: Path) -> None:
    engine = await started(folder, ScriptedEngine())
    before = await engine.generate(lease(), SAMPLING)
    await engine.adopt(folder, 6, None)
    after = await engine.generate(lease(), SAMPLING)
    assert engine.weights_version == 6
    assert {segment.weights_version for response in after for segment in response.segments} == {6}
    assert [r.token_ids.tolist() for r in before] == [r.token_ids.tolist() for r in after]


async def test_a_listed_prompt_fails_and_others_go_on(folder: Path) -> None:
    engine = await started(folder, ScriptedEngine(fail_prompts={"bad"}))
    with pytest.raises(PromptError, match="bad"):
        await engine.generate(lease("bad"), SAMPLING)
    assert len(await engine.generate(lease("good"), SAMPLING)) == 64


async def test_the_engine_dies_after_the_given_number_of_groups(folder: Path) -> None:
    engine = await started(folder, ScriptedEngine(crash_after_groups=2))
    await engine.generate(lease("a"), SAMPLING)
    await engine.generate(lease("b"), SAMPLING)
    for prompt_id in ("c", "d"):
        with pytest.raises(EngineError, match="died"):
            await engine.generate(lease(prompt_id), SAMPLING)


async def test_a_group_takes_as_long_as_its_longest_response(folder: Path) -> None:
    engine = await started(folder, ScriptedEngine(tokens_per_second=80.0))
    began = asyncio.get_running_loop().time()
    work = asyncio.create_task(engine.generate(lease(), SAMPLING))
    await asyncio.sleep(0.01)
    timing = await engine.adopt(folder, 6, None)
    group = await work
    assert max(len(response.token_ids) for response in group) == 8
    assert asyncio.get_running_loop().time() - began >= 0.1
    assert timing.responses_in_flight == 64
    assert {response.segments[0].weights_version for response in group} == {5}


async def test_a_canary_that_it_is_told_to_miss_is_refused_and_met_once_it_was_started_anew(folder: Path) -> None:
    canary = Canary(token_ids=(1, 2), logprobs=(-1.0,), bound=0.01)
    engine = ScriptedEngine(canary_offsets={6: (0.5, 0.0), 7: (0.5, 0.25)})
    assert await engine.start(folder, 5, canary) == 0.0
    timing = await engine.adopt(folder, 6, canary)
    assert (timing.canary_difference, timing.was_refused, engine.weights_version) == (0.0, True, 6)
    with pytest.raises(CanaryError, match=r"differ by 0\.25 nats, at most 0\.01"):
        await engine.adopt(folder, 7, canary)
    assert engine.weights_version == 6


async def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"config\.json must give vocab_size"):
        await ScriptedEngine().start(tmp_path, 1, None)


async def test_each_response_ends_after_its_own_length(folder: Path) -> None:
    engine = await started(folder, ScriptedEngine(tokens_per_second=1000.0))
    in_flight: list[int] = []
    group = await engine.generate(lease(), SAMPLING, lambda _: in_flight.append(engine.load.num_running))
    assert in_flight == list(reversed(range(len(group))))
    assert engine.load.num_running == 0


async def test_stop_tokens_and_stop_texts_of_the_run_end_a_response(folder: Path) -> None:
    engine = await started(folder, ScriptedEngine())
    whole = await engine.generate(lease(), SAMPLING)
    by_token = await engine.generate(lease(), replace(SAMPLING, stop_token_ids=tuple(range(3, 20))))
    assert any(len(short.token_ids) < len(long.token_ids) for short, long in zip(by_token, whole, strict=True))
    for short, long in zip(by_token, whole, strict=True):
        ends = [place for place, token in enumerate(long.token_ids) if 3 <= token < 20]
        length = ends[0] + 1 if ends else len(long.token_ids)
        assert short.token_ids.tolist() == long.token_ids[:length].tolist()
        assert short.behavior_logprobs.tolist() == long.behavior_logprobs[:length].tolist()
        assert sum(segment.num_tokens for segment in short.segments) == length
        assert short.finish_reason == ("stop" if ends else long.finish_reason)
    by_text = await engine.generate(lease(), replace(SAMPLING, stop=("never", "answer is", "is")))
    assert {(response.text, response.finish_reason) for response in by_text} == {("The answer is", "stop")}
