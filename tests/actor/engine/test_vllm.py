import asyncio
import gc
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import psutil
import pytest
import pytest_asyncio
import torch
from prometheus_client.parser import text_string_to_metric_families
from transformers import AutoModelForCausalLM

from actor.engine.interface import EngineLoad
from actor.engine.vllm import VllmEngine
from actor.progress import watch
from actor.weights_follower import WeightsFollower
from dcpo_async.errors import EngineError, PromptError, WeightsError
from dcpo_async.monitoring.engines import WatchedEngines, vllm_metrics_path, write_vllm_metrics
from dcpo_async.records import Lease, LeaseName, Response, Sampling
from tests.protocol.made_session import joining
from tests.tiny_model import CHARACTERS, make_tiny_model

pytestmark = [
    pytest.mark.system,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
]

STOP_TOKEN = 2
PROMPT = np.array([1, 6, 15, 7, 19], np.int32)
POSITIONS = itertools.count()


def lease(prompt_id: str = "p", visit: int = 1, prompt: np.ndarray = PROMPT) -> Lease:
    return Lease(next(POSITIONS), 1, prompt_id, visit, 1, prompt, "12")


def sampling(group_size: int = 16, max_response_tokens: int = 40, temperature: float = 1.0) -> Sampling:
    return Sampling(group_size, temperature, max_response_tokens, seed=7)


def transformers_logprobs(folder: Path, response: Response, temperature: float) -> np.ndarray:
    """Log-probs of a response by the model of a folder, [tokens]."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.from_numpy(np.concatenate([PROMPT, response.token_ids])).long()
    with torch.no_grad():
        logits = model(tokens[None]).logits[0, len(PROMPT) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(-1, tokens[len(PROMPT) :, None])[:, 0].numpy()


def largest_difference(folder: Path, group: tuple[Response, ...], temperature: float) -> float:
    return max(float(np.abs(r.behavior_logprobs - transformers_logprobs(folder, r, temperature)).max()) for r in group)


def engine_core() -> psutil.Process:
    """The EngineCore process of the engine that was started last."""
    cores = [child for child in psutil.Process().children() if "EngineCore" in child.name()]
    return max(cores, key=psutil.Process.create_time)


@pytest.fixture(scope="module", autouse=True)
def vllm_leaves_sockets_to_the_collector() -> Iterator[None]:
    """Here, where its warnings are filtered, and not at the end of the session."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    made = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    for seed, folder in enumerate(made):
        make_tiny_model(folder, seed)
    return made


def small_engine(**more: Any) -> VllmEngine:
    return VllmEngine(dtype="float32", device="cpu", max_model_tokens=256, max_responses=64, kv_cache_gib=0.5, **more)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folders: tuple[Path, Path]) -> AsyncIterator[VllmEngine]:
    """Shared by the tests of this module; the last one that takes it breaks it."""
    engine = small_engine(keeps_metrics=True)
    await engine.start(folders[0], 1, None)
    yield engine
    await engine.close()


async def adopt_until_done(engine: VllmEngine, folders: tuple[Path, Path], work: "asyncio.Task[object]") -> None:
    while not work.done():
        version = engine.weights_version + 1
        await engine.adopt(folders[version % 2], version, None)
        await asyncio.sleep(0.2)


async def test_what_vllm_counts_is_passed_on_by_engine_process(engine: VllmEngine, tmp_path: Path) -> None:
    def counted() -> float:
        write_vllm_metrics(vllm_metrics_path(reports[1]))
        families = text_string_to_metric_families(WatchedEngines(reports, lambda: [1, 1]).metrics().decode())
        samples = [sample for family in families for sample in family.samples]
        [found] = [sample for sample in samples if sample.name == "vllm:generation_tokens_total"]
        assert found.labels == {"engine": "1", "model_name": "policy"}
        return found.value

    reports = [tmp_path / "engine-0.report", tmp_path / "engine-1.report"]
    before = counted()
    group = await engine.generate(lease(), sampling())
    assert counted() - before == sum(len(response.token_ids) for response in group)


def assert_each_is_whole(group: tuple[Response, ...], max_tokens: int) -> None:
    for response in group:
        tokens = response.token_ids.tolist()
        assert len(response.behavior_logprobs) == len(tokens)
        assert sum(segment.num_tokens for segment in response.segments) == len(tokens)
        if response.finish_reason == "stop":
            assert tokens.index(STOP_TOKEN) == len(tokens) - 1
        else:
            assert STOP_TOKEN not in tokens
            assert len(tokens) == max_tokens


async def test_what_its_processes_open_to_each_other_is_on_loopback_whatever_this_machines_name_stands_for() -> None:
    # gloo listens in the EngineCore, which inherits this.
    assert [os.environ[f"{name}_SOCKET_IFNAME"] for name in ("GLOO", "NCCL")] == ["lo", "lo"]


async def test_logprobs_are_those_of_the_tempered_distribution(engine: VllmEngine, folders: tuple[Path, Path]) -> None:
    group = await engine.generate(lease(), sampling(temperature=0.7))
    assert largest_difference(folders[0], group, 0.7) < 1e-4
    assert largest_difference(folders[0], group, 1.0) > 1e-2


async def test_stop_texts_and_stop_tokens_end_a_response_where_it_was_sampled_all_the_same(
    engine: VllmEngine, folders: tuple[Path, Path]
) -> None:
    whole = await engine.generate(lease(), sampling())
    tokens = max(whole, key=lambda response: len(response.token_ids)).token_ids.tolist()
    named = range(4, 4 + len(CHARACTERS))
    pair = next(pair for pair in itertools.pairwise(tokens[3:]) if pair[0] in named and pair[1] in named)
    text, one = "".join(CHARACTERS[token - 4] for token in pair), tokens[5]
    for ends, asked in (
        ([pair], {"stop": (text, "never")}),
        ([(one,)], {"stop_token_ids": (one,)}),
        ([pair, (one,)], {"stop": (text,), "stop_token_ids": (one,)}),
        ([(STOP_TOKEN,)], {"stop": ("<eos>",)}),
    ):
        group = await engine.generate(lease(), replace(sampling(), **asked))
        for short, long in zip(group, whole, strict=True):
            tokens = long.token_ids.tolist()
            lengths = [p + len(end) for end in ends for p in range(40) if tuple(tokens[p : p + len(end)]) == end]
            length = min(lengths, default=len(tokens))
            assert short.token_ids.tolist() == tokens[:length]
            assert sum(segment.num_tokens for segment in short.segments) == length
            assert short.finish_reason == ("stop" if lengths else long.finish_reason)
            np.testing.assert_allclose(short.behavior_logprobs, long.behavior_logprobs[:length], atol=1e-4)
            assert long.text.startswith(short.text)
        assert largest_difference(folders[0], group, 1.0) < 1e-4


async def test_an_engine_core_that_stands_still_is_noticed_by_its_steps_and_the_tokens_of_each_lease_are_known(
    engine: VllmEngine,
) -> None:
    asked = lease("hung")
    name = LeaseName(asked.position, asked.attempt)
    work = asyncio.create_task(engine.generate(asked, sampling(max_response_tokens=200)))
    async with asyncio.timeout(60):
        while not engine.running_tokens.get(name):  # noqa: ASYNC110 - the engine has no event for a test
            await asyncio.sleep(0.01)
        assert engine.load.steps > 0
        core = engine_core()
        core.suspend()
        try:
            session, updates_nothing = joining(), cast(WeightsFollower, SimpleNamespace(is_updating=False))
            with pytest.raises(EngineError, match=r"vllm .* hangs: no step for .* with 0 responses to 1 leases in it"):
                await watch(engine, session, updates_nothing, stall_seconds=3.0)
        finally:
            core.resume()
        assert (session.activity, session.running_tokens[name] > 0) == ("generating", True)
        await work
    assert engine.running_tokens == {}


async def test_temperature_0_takes_the_likeliest_token_whatever_else_is_in_the_batch(
    engine: VllmEngine, folders: tuple[Path, Path]
) -> None:
    (response,), _ = await asyncio.gather(
        engine.generate(lease(), sampling(group_size=1, temperature=0.0)), engine.generate(lease("q"), sampling())
    )
    model = AutoModelForCausalLM.from_pretrained(folders[0], dtype=torch.float32)
    tokens = torch.from_numpy(np.concatenate([PROMPT, response.token_ids])).long()
    with torch.no_grad():
        logits = model(tokens[None]).logits[0, len(PROMPT) - 1 : -1]
    assert logits.argmax(-1).tolist() == response.token_ids.tolist()
    assert largest_difference(folders[0], (response,), 1.0) < 1e-4


async def test_responses_are_whole_and_carry_the_version_of_the_start(engine: VllmEngine) -> None:
    group = await engine.generate(lease(), sampling(group_size=32))
    assert_each_is_whole(group, max_tokens=40)
    assert {r.finish_reason for r in group} == {"stop", "length"}
    assert {s.weights_version for r in group for s in r.segments} == {1}


async def test_text_is_the_response_without_its_special_tokens(engine: VllmEngine) -> None:
    group = await engine.generate(lease(), sampling())
    assert all("<eos>" not in response.text for response in group)
    assert max(len(response.text) for response in group) >= 30


async def test_a_visit_answered_anew_gives_the_same_group(engine: VllmEngine) -> None:
    first, again = await engine.generate(lease(), sampling()), await engine.generate(lease(), sampling())
    assert [r.token_ids.tolist() for r in first] == [r.token_ids.tolist() for r in again]


async def test_responses_of_a_group_and_visits_of_a_prompt_differ(engine: VllmEngine) -> None:
    first, second = await asyncio.gather(
        engine.generate(lease(), sampling()), engine.generate(lease(visit=2), sampling())
    )
    assert len({str(response.token_ids.tolist()) for response in first + second}) == 32


async def test_responses_in_flight_go_on_to_their_end_across_updates(
    engine: VllmEngine, folders: tuple[Path, Path]
) -> None:
    leases = [lease(f"flight {number}") for number in range(8)]
    work = asyncio.gather(*(engine.generate(each, sampling(max_response_tokens=200)) for each in leases))
    await adopt_until_done(engine, folders, work)
    responses = tuple(response for group in await work for response in group)
    assert len(responses) == 8 * 16
    assert_each_is_whole(responses, max_tokens=200)
    versions = [[segment.weights_version for segment in response.segments] for response in responses]
    assert all(each == sorted(set(each)) for each in versions)
    assert max(len(each) for each in versions) >= 2
    assert any(len(each) >= 2 for each, r in zip(versions, responses, strict=True) if r.finish_reason == "length")


async def test_adopted_weights_are_those_that_sample(engine: VllmEngine, folders: tuple[Path, Path]) -> None:
    timing = await engine.adopt(folders[1], 100, None)
    group = await engine.generate(lease(), sampling())
    assert engine.weights_version == 100
    assert timing.responses_in_flight == 0
    assert {s.weights_version for r in group for s in r.segments} == {100}
    assert largest_difference(folders[1], group, 1.0) < 1e-4
    assert largest_difference(folders[0], group, 1.0) > 1e-2


async def test_weights_of_another_shape_are_refused_before_the_pause(engine: VllmEngine, tmp_path: Path) -> None:
    make_tiny_model(tmp_path, seed=0, hidden_size=32)
    with pytest.raises(WeightsError, match="differ in name or shape"):
        await engine.adopt(tmp_path, 101, None)
    assert len(await engine.generate(lease(), sampling())) == 16


async def test_a_prompt_that_is_too_long_fails_alone(engine: VllmEngine) -> None:
    with pytest.raises(PromptError, match="300"):
        await engine.generate(lease(prompt=np.full(300, 5, np.int32)), sampling())
    assert len(await engine.generate(lease(), sampling())) == 16


async def test_a_cancelled_call_leaves_nothing_in_flight(engine: VllmEngine, folders: tuple[Path, Path]) -> None:
    work = asyncio.create_task(engine.generate(lease(), sampling(max_response_tokens=200)))
    await asyncio.sleep(0.1)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert (await engine.adopt(folders[1], 102, None)).responses_in_flight == 0


async def test_each_response_tells_that_it_has_ended_and_the_engine_what_it_holds(engine: VllmEngine) -> None:
    loads: list[EngineLoad] = []
    group = await engine.generate(lease(), sampling(max_response_tokens=200), lambda _: loads.append(engine.load))
    assert len(loads) == len(group) == 16
    assert max(load.num_running for load in loads) >= 12
    assert all(0 < load.kv_cache_share < 0.2 for load in loads[:8])
    assert {load.preemptions for load in loads} == {0}


async def test_an_update_that_fails_inside_the_engine_ends_it(engine: VllmEngine, folders: tuple[Path, Path]) -> None:
    handle = os.open(folders[0], os.O_RDONLY)
    only_here = Path(f"/proc/self/fd/{handle}")
    work = asyncio.create_task(engine.generate(lease(), sampling(max_response_tokens=200)))
    await asyncio.sleep(0.1)
    with pytest.raises(EngineError, match="no safetensors file"):
        await engine.adopt(only_here, 103, None)
    os.close(handle)
    with pytest.raises(EngineError, match="version 103 could not be applied"):
        await work
    with pytest.raises(EngineError, match="version 103 could not be applied"):
        await engine.generate(lease(), sampling())


async def test_a_device_that_this_vllm_is_not_built_for_is_refused(folders: tuple[Path, Path]) -> None:
    engine = VllmEngine(dtype="float32", device="gpu", max_model_tokens=64, max_responses=4)
    with pytest.raises(EngineError, match="device gpu was asked for, but vllm"):
        await engine.start(folders[0], 1, None)


async def test_adopted_weights_of_a_model_with_a_tied_head_are_those_that_sample(tmp_path: Path) -> None:
    folders = tmp_path / "first", tmp_path / "second"
    for seed, folder in enumerate(folders):
        make_tiny_model(folder, seed, tied=True)
    engine = VllmEngine(dtype="float32", device="cpu", max_model_tokens=64, max_responses=16, kv_cache_gib=0.1)
    await engine.start(folders[0], 1, None)
    for version, folder in enumerate((folders[1], folders[0]), start=2):
        await engine.adopt(folder, version, None)
        group = await engine.generate(lease(), sampling())
        assert largest_difference(folder, group, 1.0) < 1e-4
    await engine.close()


async def test_a_response_that_loses_its_place_in_the_cache_is_whole_and_the_loss_is_counted(
    folders: tuple[Path, Path],
) -> None:
    # 20 blocks of 32 tokens, each of which takes 32 KiB.
    small_gib = 20 * 32 / 2**20
    engine = VllmEngine(dtype="float32", device="cpu", max_model_tokens=256, max_responses=16, kv_cache_gib=small_gib)
    assert engine.load == EngineLoad()
    await engine.start(folders[0], 1, None)
    group = await engine.generate(lease(), sampling(max_response_tokens=200))
    assert engine.load.preemptions > 0
    assert_each_is_whole(group, max_tokens=200)
    assert largest_difference(folders[0], group, 1.0) < 1e-4
    await engine.close()


async def test_an_engine_that_was_not_started_says_so() -> None:
    engine = VllmEngine(dtype="float32", device="cpu", max_model_tokens=64, max_responses=4)
    with pytest.raises(EngineError, match="was not started"):
        await engine.generate(lease(), sampling())


async def test_recomputed_keys_and_a_killed_engine_core(folders: tuple[Path, Path]) -> None:
    engine = small_engine(kv_after_update="recompute")
    await engine.start(folders[0], 1, None)
    work = asyncio.create_task(engine.generate(lease(), sampling(max_response_tokens=200)))
    await adopt_until_done(engine, folders, work)
    assert_each_is_whole(await work, max_tokens=200)
    assert max(len(response.segments) for response in await work) >= 2

    work = asyncio.create_task(engine.generate(lease(), sampling(max_response_tokens=200)))
    await asyncio.sleep(0.1)
    engine_core().send_signal(signal.SIGKILL)
    async with asyncio.timeout(20):
        with pytest.raises(EngineError, match="EngineCore"):
            await engine.adopt(folders[1], 1000, None)
        with pytest.raises(EngineError, match="EngineCore"):
            await work
        with pytest.raises(EngineError):
            await engine.generate(lease(), sampling())
    await engine.close()


HOST = """
import asyncio, sys
from pathlib import Path
from actor.engine.vllm import VllmEngine
from actor.progress import watch
from actor.weights_follower import WeightsFollower

async def main():
    engine = VllmEngine(dtype="float32", device="cpu", max_model_tokens=64, max_responses=4, kv_cache_gib=0.1)
    await engine.start(Path(sys.argv[1]), 1, None)
    print("ready", flush=True)
    await asyncio.sleep(600)

if __name__ == "__main__":
    asyncio.run(main())
"""


async def test_the_engine_core_ends_when_its_host_is_killed(folders: tuple[Path, Path], tmp_path: Path) -> None:
    script = tmp_path / "host.py"
    script.write_text(HOST)
    host = await asyncio.create_subprocess_exec(
        sys.executable,
        script,
        folders[0],
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert host.stdout is not None
    async with asyncio.timeout(120):
        while await host.stdout.readline() != b"ready\n":
            assert host.returncode is None
    children = psutil.Process(host.pid).children(recursive=True)
    assert any("EngineCore" in child.name() for child in children)
    host.kill()
    await host.wait()
    _, alive = await asyncio.to_thread(psutil.wait_procs, children, 10)
    assert alive == []
