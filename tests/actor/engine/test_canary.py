"""An engine that does not hold the weights of a version is found before its first token."""

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM
from vllm.engine.arg_utils import AsyncEngineArgs

from actor.engine.start_path import StartPath
from actor.engine.vllm import VllmEngine
from dcpo_async.errors import CanaryError, EngineError
from dcpo_async.records import Lease, Response, Sampling
from dcpo_async.weights.canary import Canary, canary_bound
from learner.trainer.canary import canary_tokens
from tests.actor.engine.tampering import order
from tests.tiny_model import make_tiny_model

pytestmark = [
    pytest.mark.system,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
]

PROMPT = np.array([1, 6, 15, 7, 19], np.int32)
EXTENSION = "tests.actor.engine.tampering.TamperingExtension"


def model_logprobs(folder: Path, token_ids: list[int]) -> torch.Tensor:
    """Log-probs by transformers of each token given all before it, from the second on, [tokens - 1]."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.tensor(token_ids)
    with torch.no_grad():
        logits = model(tokens[None]).logits[0, :-1]
    return logits.log_softmax(-1).gather(-1, tokens[1:, None])[:, 0]


def canary_of(folder: Path) -> Canary:
    token_ids = canary_tokens(64, 64, seed=3)
    logprobs = tuple(model_logprobs(folder, list(token_ids)).tolist())
    return Canary(token_ids=token_ids, logprobs=logprobs, bound=canary_bound(None, "float32"))


def generating(engine: VllmEngine, max_response_tokens: int = 40) -> "asyncio.Task[tuple[Response, ...]]":
    lease = Lease(1, 1, "p", 1, 1, PROMPT, "12")
    return asyncio.create_task(engine.generate(lease, Sampling(16, 1.0, max_response_tokens, seed=7)))


def largest_difference(folder: Path, group: tuple[Response, ...]) -> float:
    def of(response: Response) -> float:
        said = model_logprobs(folder, [*PROMPT.tolist(), *response.token_ids.tolist()])[len(PROMPT) - 1 :]
        return float(np.abs(response.behavior_logprobs - said.numpy()).max())

    return max(map(of, group))


def make_engine(start_folder: Path | None = None) -> VllmEngine:
    return VllmEngine(
        dtype="float32",
        device="cpu",
        max_model_tokens=256,
        max_responses=16,
        kv_cache_gib=0.1,
        start_folder=start_folder,
        worker_extension=EXTENSION,
    )


@pytest.fixture(scope="module", autouse=True)
def vllm_leaves_sockets_to_the_collector() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A version's folder with weights that no other test has."""
    folder = tmp_path / "version"
    make_tiny_model(folder, seed=int.from_bytes(tmp_path.name.encode()[-8:]) % 1000 + 1)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[VllmEngine]:
    """Shared by the tests of this module; the last one that takes it ends it."""
    folder = tmp_path_factory.mktemp("first")
    make_tiny_model(folder, seed=0)
    engine = make_engine(tmp_path_factory.mktemp("run"))
    difference = await engine.start(folder, 1, canary_of(folder))
    assert difference is not None
    assert 0 <= difference < 1e-5
    yield engine
    await engine.close()


async def test_right_weights_are_adopted_and_their_difference_is_told(engine: VllmEngine, version: Path) -> None:
    timing = await engine.adopt(version, 2, canary_of(version))
    assert not timing.was_refused
    assert timing.canary_difference is not None
    assert timing.canary_difference < 1e-5
    assert list(timing.stage_seconds) == ["pause", "load", "canary", "resume"]


async def test_scoring_leaves_keys_and_values_of_responses_in_flight_as_they_were(
    engine: VllmEngine, version: Path
) -> None:
    canary = canary_of(version)
    await engine.adopt(version, 10, canary)
    undisturbed = await generating(engine, 200)
    work = generating(engine, 200)
    num_updates = 0
    while not work.done():
        await asyncio.sleep(0.05)
        num_updates += (await engine.adopt(version, engine.weights_version + 1, canary)).responses_in_flight > 0
    assert num_updates >= 3
    assert largest_difference(version, await work) < 1e-4
    assert [r.token_ids.tolist() for r in await work] == [r.token_ids.tolist() for r in undisturbed]


@pytest.mark.parametrize(
    ("kind", "tensor"),
    [("change", "model.layers.1.post_attention_layernorm.weight"), ("skip", "model.layers.0.self_attn.v_proj.weight")],
)
async def test_a_tampered_engine_is_started_anew_and_what_was_in_flight_begins_anew(
    engine: VllmEngine, version: Path, kind: str, tensor: str, caplog: pytest.LogCaptureFixture
) -> None:
    order(version, kind, tensor)
    work = generating(engine, 200)
    await asyncio.sleep(0.1)
    number = engine.weights_version + 1
    timing = await engine.adopt(version, number, canary_of(version))
    assert timing.was_refused
    assert timing.canary_difference is not None
    assert timing.canary_difference < 1e-5
    assert timing.responses_in_flight > 0
    (told,) = [record.getMessage() for record in caplog.records if "started anew" in record.msg]
    assert f"weights version {number} is not in the engine: at token " in told
    group = await work
    # What had ended before is of the version before; nothing is of both.
    assert {len(response.segments) for response in group} == {1}
    anew = tuple(response for response in group if response.segments[0].weights_version == number)
    assert anew
    assert largest_difference(version, anew) < 1e-4


async def test_an_engine_that_is_refused_twice_ends_with_the_numbers(engine: VllmEngine, version: Path) -> None:
    canary = canary_of(version)
    wrong = canary.model_copy(update={"logprobs": (canary.logprobs[0] - 0.25, *canary.logprobs[1:])})
    work = generating(engine, 200)
    await asyncio.sleep(0.1)
    with pytest.raises(CanaryError, match=r"version 500 is not .* token 1 of 64 .* differ by 0\.25 nats, at most 0\.0"):
        await engine.adopt(version, 500, wrong)
    with pytest.raises(EngineError, match="version 500 could not be applied"):
        await work
    with pytest.raises(EngineError, match="version 500 could not be applied"):
        await generating(engine)


async def test_a_tied_head_that_an_update_leaves_stale_is_found(tmp_path: Path) -> None:
    folders = tmp_path / "first", tmp_path / "second"
    for seed, folder in enumerate(folders):
        make_tiny_model(folder, seed, tied=True)
    order(folders[1], "unpacked")
    engine = make_engine()
    await engine.start(folders[0], 1, canary_of(folders[0]))
    timing = await engine.adopt(folders[1], 2, canary_of(folders[1]))
    assert timing.was_refused
    group = await generating(engine)
    assert largest_difference(folders[1], group) < 1e-4
    await engine.close()


async def test_an_engine_that_starts_from_other_weights_than_the_canarys_is_refused(tmp_path: Path) -> None:
    folders = tmp_path / "first", tmp_path / "second"
    for seed, folder in enumerate(folders):
        make_tiny_model(folder, seed)
    engine = make_engine()
    with pytest.raises(CanaryError, match="weights version 1 is not in the engine"):
        await engine.start(folders[0], 1, canary_of(folders[1]))
    with pytest.raises(EngineError, match="weights version 1 is not in the engine"):
        await generating(engine)


async def test_vllm_finds_its_compiled_code_again_by_the_start_path(tmp_path: Path) -> None:
    def key(folder: Path) -> str:
        return AsyncEngineArgs(model=str(folder)).create_model_config().compute_hash()

    folders, start = (tmp_path / "first", tmp_path / "second"), StartPath(tmp_path / "run")
    for seed, folder in enumerate(folders):
        make_tiny_model(folder, seed)
    assert key(folders[0]) != key(folders[1])
    assert key(start.to(folders[0])) == key(start.to(folders[1]))
