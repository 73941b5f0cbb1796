"""The best version is kept whole, whatever is killed, and by figures of the same problems alone."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dcpo_async.errors import ConfigError, WeightsError
from dcpo_async.evaluation.best import BestVersion, version_name
from dcpo_async.weights.manifest import Manifest, read_manifest
from dcpo_async.weights.places import version_folder
from dcpo_async.weights.store import verify, write_snapshot
from tests.adapters.made import AdapterRun
from tests.tiny_model import make_tiny_model

NUM_VERSIONS = 4


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    make_tiny_model(folder / "model", 0)
    for version in range(1, NUM_VERSIONS + 1):
        write_snapshot(
            folder / "weights",
            weights_version=version,
            run_id="run",
            incarnation=1,
            step=version - 1,
            tensors=load_file(folder / "model" / "model.safetensors"),
            skeleton_folder=folder / "model",
        )
    return folder / "weights"


def of(store: Path, version: int) -> tuple[Path, Manifest]:
    folder = version_folder(store, version)
    return folder, read_manifest(folder)


def summary(store: Path, accuracies: Mapping[int, float], problems: int = 10) -> dict[str, Any]:
    """What an evaluation says of versions by their accuracies."""
    return {version_name(of(store, version)[1]): measured(mean, problems) for version, mean in accuracies.items()}


def measured(mean: float, problems: int = 10) -> dict[str, Any]:
    accuracy = {"mean": mean, "low": mean / 2, "high": mean}
    row = {"problems": problems, "greedy": None, "sampled": {"samples": 4, "accuracy": accuracy}}
    return {"sets": {"sums": row}}


def kept(out: Path) -> int:
    return verify(out / "best").weights_version


@settings(max_examples=12, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=NUM_VERSIONS))
def test_the_first_of_the_best_versions_is_kept(
    tmp_path_factory: pytest.TempPathFactory, store: Path, means: list[float]
) -> None:
    out, accuracies = tmp_path_factory.mktemp("out"), dict(enumerate(means, start=1))
    for version in accuracies:
        # Each time as a start of its own.
        BestVersion(out).consider(*of(store, version), summary(store, accuracies))
        assert {path.name for path in out.iterdir()} == {"best"}
    assert kept(out) == 1 + means.index(max(means))


def test_it_is_a_model_for_transformers(tmp_path: Path, store: Path) -> None:
    assert BestVersion(tmp_path).consider(*of(store, 1), summary(store, {1: 0.5}))
    AutoModelForCausalLM.from_pretrained(tmp_path / "best")


@pytest.mark.parametrize(
    ("standing", "left"),
    [
        ({"best": 1, ".writing-best": 2}, 1),
        ({".replaced-best": 1, ".writing-best": 2}, 2),
        ({".replaced-best": 1, "best": 2}, 2),
    ],
)
def test_a_kill_while_it_is_replaced_leaves_one_of_both_whole(
    tmp_path: Path, store: Path, standing: dict[str, int], left: int
) -> None:
    for name, version in standing.items():
        shutil.copytree(version_folder(store, version), tmp_path / name)
    assert not BestVersion(tmp_path).consider(*of(store, 3), summary(store, {1: 0.25, 2: 0.5, 3: 0.0}))
    assert kept(tmp_path) == left
    assert {path.name for path in tmp_path.iterdir()} == {"best"}


def test_a_first_copy_that_was_cut_short_is_no_best_version(tmp_path: Path, store: Path) -> None:
    (tmp_path / ".writing-best").mkdir()
    (tmp_path / ".writing-best" / "config.json").write_text("{")
    BestVersion(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_versions_measured_on_other_problems_are_not_compared(tmp_path: Path, store: Path) -> None:
    best, found = BestVersion(tmp_path), summary(store, {1: 0.25})
    best.consider(*of(store, 1), found)
    with pytest.raises(ConfigError, match=r"step-00000000-v1 in .*best was measured on other problems"):
        best.consider(*of(store, 2), found | summary(store, {2: 0.5}, problems=20))
    assert kept(tmp_path) == 1


def test_weights_that_are_not_what_their_manifest_says_are_not_kept(tmp_path: Path, store: Path) -> None:
    folder, manifest = of(store, 1)
    shutil.copytree(folder, tmp_path / "broken")
    (tmp_path / "broken" / "config.json").write_text("{}")
    (tmp_path / "out").mkdir()
    with pytest.raises(WeightsError):
        BestVersion(tmp_path / "out").consider(tmp_path / "broken", manifest, summary(store, {1: 0.5}))
    assert not (tmp_path / "out" / "best").exists()


def test_something_else_called_best_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "sums.jsonl").write_text("x")
    with pytest.raises(ConfigError, match="move it away"):
        BestVersion(tmp_path)
    assert (tmp_path / "best" / "sums.jsonl").read_text() == "x"


def test_an_adapter_is_kept_as_the_whole_model_that_it_makes(tmp_path: Path) -> None:
    run = AdapterRun(tmp_path / "run")
    run.publish_base(1)
    for version in (2, 3):
        run.publish_adapter(version, 1, run.canary(version))
    best, found = BestVersion(tmp_path / "out"), summary(run.store, {2: 0.25, 3: 0.5})
    (tmp_path / "out").mkdir()
    for version in (2, 3):
        assert best.consider(*of(run.store, version), found)
        assert kept(tmp_path / "out") == version
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"best"}
    kept_model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "best").state_dict()
    expected = run.model(3).state_dict()
    assert kept_model.keys() == expected.keys()
    assert all(torch.equal(kept_model[name], tensor) for name, tensor in expected.items())
    assert read_manifest(tmp_path / "out" / "best").canary == run.canary(3)
