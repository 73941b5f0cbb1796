"""A run that trains an adapter, with the real vLLM and DeepSpeed: killed, resumed, and exported."""

import signal
from collections.abc import Iterator

import pytest
import torch

from dcpo_async.adapters import merged, scale_of
from dcpo_async.run_folder import AdapterFolders, RunFolder
from dcpo_async.weights.manifest import read_manifest
from dcpo_async.weights.places import version_folder, versions
from dcpo_async.weights.tensor_file import ADAPTER_NAME, WEIGHTS_NAME, map_tensors
from tests.system.services import Services, assert_counted_once
from tests.tiny_model import make_tiny_model

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]

REWARD = """
def of_letters(problem, answer, response, finish_reason, num_tokens, metadata):
    return sum(map(str.isalpha, response)) / max(1, len(response))
"""
WORDS = (
    *("--training.max_steps", "8", "--checkpoint.interval_steps", "2", "--lag.max_lag", "1"),
    *("--adapter.rank", "4", "--training.learning_rate", "0.02", "--grading.reward", "reward_of_letters:of_letters"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """A run whose learner was killed after its fourth step, and went on to its end."""
    folder = tmp_path_factory.mktemp("adapter")
    (folder / "reward_of_letters.py").write_text(REWARD)
    make_tiny_model(folder / "model", seed=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=":")
        with Services(folder, folder / "model") as services:
            learner = services.start_learner(*WORDS)
            actor = services.start_actor("--engine", "vllm", "--kv-cache-gib", "0.25")
            services.until("the fourth step", lambda: len(services.metrics()) >= 4, seconds=700)
            learner.signal(signal.SIGKILL)
            learner.process.wait()
            learner = services.start_learner(*WORDS)
            services.ends_well(learner, seconds=400)
            services.ends_well(actor, seconds=200)
            yield services


def test_log_probs_of_engine_and_learner_agree_and_the_policy_moves(run: Services) -> None:
    lines = run.metrics()
    assert {line["step"] for line in lines} == {*range(1, 9)}
    assert max(line["canary_difference"] for line in lines if "canary_difference" in line) < 1e-4
    # Where no response saw an exchange: others have keys and values of the adapter before it.
    of_the_same = [line["lag_0/kl_behavior"] for line in lines if line["lag_mean"] == 0]
    assert of_the_same
    assert max(of_the_same) < 1e-8
    assert max(line["lag_1/kl_behavior"] for line in lines if "lag_1/kl_behavior" in line) > 1e-6
    assert lines[-1]["grad_norm"] > 0
    for step in range(1, 9):
        # Steps that were trained again after the kill, from the checkpoint of the adapter alone.
        assert len({(line["grad_norm"], line["ratio_mean"]) for line in lines if line["step"] == step}) == 1
    assert_counted_once(run)


def test_versions_are_adapters_to_one_frozen_model(run: Services) -> None:
    store = RunFolder(run.run).weights
    base, *adapters = (read_manifest(version_folder(store, version)) for version in versions(store))
    assert (base.weights_version, base.is_base) == (1, True)
    assert {manifest.base_version for manifest in adapters} == {1}
    log = next(run.folder.glob("actor-*/engine-0.log")).read_text()
    assert "updates load the whole adapter" in log
    assert "refused" not in log
    assert run.ledger("SELECT COUNT(*) FROM versions WHERE incarnation = 2")[0][0] >= 4


def test_the_export_is_the_merged_model_and_the_last_version_in_pefts_format(run: Services) -> None:
    folder = RunFolder(run.run)
    base, adapter = (
        map_tensors(AdapterFolders(run.run).base / WEIGHTS_NAME),
        map_tensors(folder.export / "adapter" / ADAPTER_NAME),
    )
    last = version_folder(folder.weights, max(versions(folder.weights)))
    published = map_tensors(last / ADAPTER_NAME)
    assert published.keys() == adapter.keys()
    assert all(torch.equal(published[name], tensor) for name, tensor in adapter.items())
    expected = dict(merged(base, adapter, scale_of(folder.export / "adapter")))
    exported = map_tensors(folder.export / WEIGHTS_NAME)
    assert exported.keys() == expected.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in expected.items())
    assert any(not torch.equal(exported[name], tensor) for name, tensor in base.items())


def test_a_run_goes_on_with_the_adapter_that_it_began_with(run: Services) -> None:
    learner = run.start_learner(*WORDS, "--adapter.alpha", "64", "--training.max_steps", "9")
    learner.process.wait()
    run.services.remove(learner)
    assert learner.code == 2
    assert "a run goes on with what it trains" in learner.log.splitlines()[-1]
