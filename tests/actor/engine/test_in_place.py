"""Elements that are exchanged in a standing engine, with the real vLLM: bit for bit what a whole load leaves.

vLLM packs weights on a CPU, so that nothing can be exchanged there; most engines here do not (see `unpacked`).
"""

import gc
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from actor.engine.loading import INDICES, VALUES, changes_since, in_memory
from actor.engine.vllm import VllmEngine
from actor.engine.workers.vllm_worker import WorkerExtension
from dcpo_async.errors import WeightsError
from dcpo_async.weights.manifest import read_manifest
from dcpo_async.weights.places import patches_folder, version_folder
from dcpo_async.weights.store import write_snapshot
from dcpo_async.weights.tensor_file import WEIGHTS_NAME, map_tensors
from tests.tiny_families import make_family

UNPACKED = "tests.actor.engine.unpacked.UnpackedExtension"
ALWAYS = ("qwen2", "qwen3")
"""Biases and fused projections; norms of queries and a tied head."""
THOROUGH = ("llama", "mistral", "gemma2", "gemma3_text", "phi3")
FAMILIES = [*ALWAYS, *(pytest.param(name, marks=pytest.mark.thorough) for name in THOROUGH)]


@pytest.fixture(scope="module", autouse=True)
def vllm_leaves_sockets_to_the_collector() -> Iterator[None]:
    yield
    gc.collect()


def moved(tensors: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """A fiftieth of the elements moves, the last tensor altogether."""
    generator = torch.Generator().manual_seed(seed)
    new = {name: tensor.clone() for name, tensor in tensors.items()}
    for tensor in new.values():
        flat = tensor.view(-1)
        places = torch.randperm(len(flat), generator=generator)[: max(1, len(flat) // 50)]
        flat[places] += torch.randn(len(places), generator=generator).bfloat16() / 10
    last = new[sorted(new)[-1]]
    last += 1
    return new


def publish(folder: Path, family: str, versions: int) -> Path:
    """A store with versions from 1 on, each with a patch from the one before."""
    make_family(folder / "model", family)
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model" / WEIGHTS_NAME).items()}
    for version in range(1, versions + 1):
        write_snapshot(
            folder / "store", weights_version=version, run_id="run", incarnation=1, step=version, tensors=tensors,
            skeleton_folder=folder / "model",
        )  # fmt: skip
        tensors = moved(tensors, version)
    return folder / "store"


def engine_of(extension: str = UNPACKED) -> VllmEngine:
    return VllmEngine(
        dtype="bfloat16", device="cpu", max_model_tokens=64, max_responses=4, kv_cache_gib=0.1,
        worker_extension=extension,
    )  # fmt: skip


async def digests(engine: VllmEngine) -> dict[str, str]:
    assert engine._engine is not None
    (found,) = await engine._engine.collective_rpc("weight_digests")
    return found  # type: ignore[no-any-return]


async def loaded_whole(engine: VllmEngine, folder: Path) -> dict[str, str]:
    """The digests after a whole load of a folder."""
    assert engine._engine is not None
    await engine._engine.collective_rpc("load_folder", args=(str(folder),))
    return await digests(engine)


def lines_about(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if words in record.getMessage()]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.system
@pytest.mark.timeout(300)
async def test_exchanged_elements_leave_what_a_whole_load_leaves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, family: str
) -> None:
    caplog.set_level(logging.INFO, "actor.engine.loading")
    store = publish(tmp_path, family, 4)
    engine = engine_of()
    await engine.start(version_folder(store, 1), 1, None)
    found = {1: await digests(engine)}
    # The third is skipped: two patches at once lead to the fourth.
    for version in (2, 4):
        await engine.adopt(version_folder(store, version), version, None)
        found[version] = await digests(engine)
    assert lines_about(caplog, "loaded whole") == []
    expected = {version: await loaded_whole(engine, version_folder(store, version)) for version in (1, 2, 4)}
    await engine.close()
    assert found == expected
    assert len({str(of_version) for of_version in found.values()}) == 3


@pytest.mark.system
@pytest.mark.timeout(300)
async def test_whatever_is_wrong_with_a_patch_the_whole_is_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "actor.engine.loading")
    store = publish(tmp_path, "llama", 6)
    patch = patches_folder(store) / "00000002.patch"
    patch.write_bytes(patch.read_bytes()[:-1] + b"x")
    (patches_folder(store) / "00000003.patch").unlink()
    engine = engine_of()
    await engine.start(version_folder(store, 1), 1, None)
    for version, why in ((2, "does not match its digest"), (3, "cannot be read"), (1, "no patches lead from")):
        await engine.adopt(version_folder(store, version), version, None)
        assert why in lines_about(caplog, "loaded whole")[-1]
        assert await digests(engine) == await loaded_whole(engine, version_folder(store, version))
    await engine.adopt(version_folder(store, 4), 4, None)
    num_whole = len(lines_about(caplog, "loaded whole"))
    await engine.adopt(version_folder(store, 5), 5, None)
    assert len(lines_about(caplog, "loaded whole")) == num_whole
    assert engine._engine is not None
    await engine._engine.collective_rpc("fail_once")
    await engine.adopt(version_folder(store, 6), 6, None)
    assert "half of it is written" in lines_about(caplog, "loaded whole")[-1]
    assert await digests(engine) == await loaded_whole(engine, version_folder(store, 6))
    await engine.close()


@pytest.mark.parametrize(
    ("family", "extension", "why"),
    [
        ("llama", "actor.engine.workers.vllm_worker.WorkerExtension", "a packed copy of its weight"),
        ("mixtral", UNPACKED, "weights of a form of its own"),
        pytest.param("deepseek_v3", UNPACKED, "", marks=pytest.mark.thorough),
    ],
)
@pytest.mark.system
@pytest.mark.timeout(300)
async def test_engines_that_derive_something_from_their_weights_load_whole_versions(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, family: str, extension: str, why: str
) -> None:
    caplog.set_level(logging.INFO, "actor.engine.loading")
    store = publish(tmp_path, family, 2)
    engine = engine_of(extension)
    await engine.start(version_folder(store, 1), 1, None)
    await engine.adopt(version_folder(store, 2), 2, None)
    await engine.close()
    assert why in lines_about(caplog, "updates load all weights")[0]


def test_a_chain_changes_each_element_once_to_what_the_version_holds(tmp_path: Path) -> None:
    store = publish(tmp_path, "llama", 3)
    folder = version_folder(store, 3)
    changes = changes_since(read_manifest(version_folder(store, 1)), read_manifest(folder), folder)
    found = {name: tensor.clone() for name, tensor in map_tensors(version_folder(store, 1) / WEIGHTS_NAME).items()}
    for key, values in changes.items():
        if key.startswith(VALUES):
            places = changes[INDICES + key.removeprefix(VALUES)].long()
            assert len(places.unique()) == len(places)
            found[key.removeprefix(VALUES)].view(-1)[places] = values
    for name, tensor in map_tensors(folder / WEIGHTS_NAME).items():
        assert torch.equal(found[name], tensor)


def test_weights_that_are_not_numbers_are_left_to_a_whole_load(tmp_path: Path) -> None:
    store = publish(tmp_path, "llama", 1)
    tensors = {name: tensor.clone() for name, tensor in map_tensors(version_folder(store, 1) / WEIGHTS_NAME).items()}
    tensors["model.norm.weight"][3] = float("nan")
    write_snapshot(
        store, weights_version=2, run_id="run", incarnation=1, step=2, tensors=tensors,
        skeleton_folder=tmp_path / "model",
    )  # fmt: skip
    folder = version_folder(store, 2)
    with pytest.raises(WeightsError, match=r"model\.norm\.weight of version 2 has weights that are not numbers"):
        changes_since(read_manifest(version_folder(store, 1)), read_manifest(folder), folder)


def test_another_run_has_no_chain_from_here(tmp_path: Path) -> None:
    store = publish(tmp_path, "llama", 2)
    folder = version_folder(store, 2)
    held = read_manifest(version_folder(store, 1)).model_copy(update={"run_id": "other"})
    with pytest.raises(WeightsError, match="no patches lead from version 1 to 2"):
        changes_since(held, read_manifest(folder), folder)


class OneWeight(nn.Module):
    """A model with one weight, and a loader of its own for it."""

    def __init__(self, load: Callable[[nn.Module, Tensor], None]) -> None:
        super().__init__()
        self.weight, self.load = nn.Parameter(torch.ones(64)), load

    def load_weights(self, weights: list[tuple[str, Tensor]]) -> set[str]:
        for _, weight in weights:
            self.load(self, weight)
        return {"weight"}


def double(model: nn.Module, weight: Tensor) -> None:
    model.weight.data[:] = 2 * weight


def renew(model: nn.Module, weight: Tensor) -> None:
    model.weight = nn.Parameter(torch.zeros(64))
    model.weight.data.copy_(weight)


@pytest.mark.parametrize(
    ("load", "why"),
    [(double, "weight has NaN in it: its loader does not copy"), (renew, "weight is another tensor than before")],
)
def test_a_loader_that_does_not_copy_is_noticed(
    tmp_path: Path, load: Callable[[nn.Module, Tensor], None], why: str
) -> None:
    worker, model = WorkerExtension(), OneWeight(load)
    worker.device, worker.model_runner = "cpu", SimpleNamespace(get_model=lambda: model)
    shutil.copytree(publish(tmp_path, "llama", 1) / "v00000001", tmp_path / "folder")
    places, new = torch.tensor([1], dtype=torch.int32), torch.zeros(1)
    with in_memory({INDICES + "model.norm.weight": places, VALUES + "model.norm.weight": new}) as path:
        worker.take_changes(path)
    with pytest.raises(RuntimeError, match=why):
        worker.apply_changes(str(tmp_path / "folder"))
