"""The real vLLM under the weights that a learner publishes, for models of each family: both say the same of each token.

An engine is started for each family, which takes most of the time: those that have biases, latent attention and routing
stand for the others, which are `thorough`.
"""

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actor.engine.vllm import VllmEngine
from dcpo_async.records import Lease, Response, Sampling
from dcpo_async.weights.tensor_file import write_tensors
from learner.weights.checkpoint_format import checkpoint_views
from learner.weights.layout import in_checkpoint_format
from learner.weights.loading import loaded_model
from tests.tiny_families import FAMILIES, make_family, perturb

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(300),
]

ALWAYS = ("qwen2", "qwen3_moe", "deepseek_v3")
CASES = [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.thorough) for name in FAMILIES]
BOUNDS = {"gemma2": 3e-6}
"""Mean difference in nats, 1e-6 of others: caps of 30 on logits and 50 on attention multiply the rounding of a tanh."""
PROMPT = np.array([1, 6, 15, 7, 19], np.int32)
SAMPLING = Sampling(group_size=8, temperature=1.0, max_response_tokens=24, seed=7)


@pytest.fixture(autouse=True)
def vllm_leaves_sockets_to_the_collector() -> Iterator[None]:
    """Here, where its warnings are filtered, and not at the end of the session."""
    yield
    gc.collect()


def mean_difference(model: Any, group: tuple[Response, ...]) -> float:
    """Mean absolute difference of the log-probs of all tokens of a group, in nats."""
    differences = []
    for response in group:
        tokens = torch.from_numpy(np.concatenate([PROMPT, response.token_ids])).long()
        with torch.no_grad():
            logprobs = model(tokens[None]).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
        found = logprobs.gather(-1, tokens[len(PROMPT) :, None])[:, 0].numpy()
        differences.append(np.abs(response.behavior_logprobs - found))
    return float(np.concatenate(differences).mean())


@pytest.mark.parametrize("family", CASES)
async def test_the_engine_samples_from_what_was_published(tmp_path: Path, family: str) -> None:
    source = tmp_path / "model"
    make_family(source, family)
    model = loaded_model(source, torch.float32).eval()
    views = checkpoint_views(model)
    engine = VllmEngine(dtype="float32", device="cpu", max_model_tokens=64, max_responses=8, kv_cache_gib=0.1)
    await engine.start(source, 1, None)
    found = []
    for version in (1, 2, 3, 4):
        if version > 1:
            perturb(model, seed=version, scale=0.05)
            folder = tmp_path / f"v{version}"
            shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
            write_tensors(folder / "model.safetensors", in_checkpoint_format(model.state_dict(), views))
            await engine.adopt(folder, version, None)
        group = await engine.generate(Lease(version, 1, "p", version, 1, PROMPT, "12"), SAMPLING)
        found.append(mean_difference(model, group))
    await engine.close()
    print(f"{family}: {', '.join(f'{difference:.1e}' for difference in found)} nats")
    assert max(found) < BOUNDS.get(family, 1e-6)
