"""The real vLLM with an adapter: it samples from the merged model, across exchanges in the middle of responses."""

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from actor.engine.vllm import VllmEngine
from dcpo_async.errors import CanaryError, WeightsError
from dcpo_async.records import Lease, Response, Sampling
from dcpo_async.weights.places import version_folder
from tests.adapters.made import AdapterRun
from tests.tiny_model import make_tiny_model

pytestmark = [
    pytest.mark.system,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(900),
]

PROMPT = [1, 6, 15, 7, 19]
NUM_VERSIONS = 6


@pytest.fixture(scope="module", autouse=True)
def vllm_leaves_sockets_to_the_collector() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> AdapterRun:
    """Version 1 is the frozen model, 2 to 6 are adapters."""
    run = AdapterRun(tmp_path_factory.mktemp("run"))
    run.publish_base(1)
    for version in range(2, NUM_VERSIONS + 1):
        run.publish_adapter(version, 1, run.canary(version))
    return run


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(run: AdapterRun) -> AsyncIterator[VllmEngine]:
    engine = VllmEngine(dtype="float32", device="cpu", max_model_tokens=256, max_responses=64, kv_cache_gib=0.25)
    difference = await engine.start(version_folder(run.store, 2), 2, run.canary(2))
    assert difference is not None
    assert difference < 1e-4
    yield engine
    await engine.close()


def generating(engine: VllmEngine, name: str, max_response_tokens: int) -> "asyncio.Task[tuple[Response, ...]]":
    lease = Lease(len(name), 1, name, 1, 1, np.array(PROMPT, np.int32), "12")
    return asyncio.create_task(engine.generate(lease, Sampling(16, 1.0, max_response_tokens, seed=7)))


def difference(run: AdapterRun, version: int, response: Response) -> float:
    """Of the engine's log-probs from the merged model's, the largest, in nats."""
    said = run.logprobs(version, [*PROMPT, *response.token_ids.tolist()])[len(PROMPT) - 1 :]
    return float(np.abs(response.behavior_logprobs - said.numpy()).max())


async def test_log_probs_are_those_of_the_merged_model(engine: VllmEngine, run: AdapterRun) -> None:
    group = await generating(engine, "first", 40)
    assert max(difference(run, 2, response) for response in group) < 1e-4
    assert min(difference(run, 3, response) for response in group if len(response.token_ids) > 5) > 1e-2


async def test_an_adapter_is_exchanged_under_responses_in_flight_which_go_on_to_their_end(
    engine: VllmEngine, run: AdapterRun
) -> None:
    works = [generating(engine, "flight" + "!" * number, 200) for number in range(4)]
    in_flight = []
    for version in range(3, NUM_VERSIONS + 1):
        await asyncio.sleep(0.3)
        timing = await engine.adopt(version_folder(run.store, version), version, run.canary(version))
        assert timing.canary_difference is not None
        assert timing.canary_difference < 1e-4
        in_flight.append(timing.responses_in_flight)
    responses = [response for group in await asyncio.gather(*works) for response in group]
    assert in_flight[0] > 0
    assert len(responses) == 4 * 16
    assert max(len(response.segments) for response in responses) >= 2
    for response in responses:
        tokens = response.token_ids.tolist()
        assert sum(segment.num_tokens for segment in response.segments) == len(tokens)
        assert len(tokens) == 200 or tokens[-1] == 2
        # Keys and values before an exchange are those of the adapter before it.
        first = response.segments[0]
        said = run.logprobs(first.weights_version, [*PROMPT, *tokens])[len(PROMPT) - 1 :][: first.num_tokens]
        assert np.abs(response.behavior_logprobs[: first.num_tokens] - said.numpy()).max() < 1e-4

    group = await generating(engine, "later", 40)
    assert {segment.weights_version for response in group for segment in response.segments} == {NUM_VERSIONS}
    assert max(difference(run, NUM_VERSIONS, response) for response in group) < 1e-4


async def test_a_version_of_another_model_or_without_an_adapter_is_refused_before_the_pause(
    engine: VllmEngine, run: AdapterRun, tmp_path: Path
) -> None:
    other = AdapterRun(tmp_path / "other", seed=1, run_id="other")
    other.publish_base(1)
    other.publish_adapter(2, 1)
    with pytest.raises(WeightsError, match=r"has an adapter to \('other', 1\), the engine .* one to \('run', 1\)"):
        await engine.adopt(version_folder(other.store, 2), 7, None)
    make_tiny_model(tmp_path / "whole", seed=0)
    with pytest.raises(WeightsError, match="has an adapter to None"):
        await engine.adopt(tmp_path / "whole", 7, None)
    assert len(await generating(engine, "still", 5)) == 16


async def test_another_adapter_in_the_engine_is_found_by_the_canary(engine: VllmEngine, run: AdapterRun) -> None:
    async def called(method: str, *arguments: object) -> list[list[float]]:
        found: list[list[float]] = await engine._running_engine().collective_rpc(method, args=arguments)
        return found

    canary = run.canary(NUM_VERSIONS)
    (found,) = await called("score_tokens", list(canary.token_ids))
    assert canary.largest_difference(found, NUM_VERSIONS) < 1e-4
    await called("load_adapter", str(version_folder(run.store, 3)))
    (found,) = await called("score_tokens", list(canary.token_ids))
    assert run.canary(3).largest_difference(found, 3) < 1e-4
    with pytest.raises(CanaryError, match="is not in the engine"):
        canary.largest_difference(found, NUM_VERSIONS)
