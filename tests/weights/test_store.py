"""A version stands whole in the store or not at all, and every byte of it is checked."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from blake3 import blake3
from safetensors.torch import load_file
from torch import Tensor

from dcpo_async.errors import WeightsError
from dcpo_async.weights.manifest import Manifest, base_of
from dcpo_async.weights.places import newest_version, versions
from dcpo_async.weights.store import (
    model_digest,
    newest_base,
    newest_policy,
    prune,
    read_manifest,
    remove_unfinished,
    verify,
    write_snapshot,
)

WEIGHTS = {
    "embed.weight": torch.arange(6.0).reshape(2, 3),
    "norm.weight": torch.ones(3, dtype=torch.bfloat16),
}


@pytest.fixture
def skeleton(tmp_path: Path) -> Path:
    folder = tmp_path / "skeleton"
    folder.mkdir()
    for name in ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"):
        (folder / name).write_text(f"content of {name}")
    for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "modeling.py"):
        (folder / name).write_text("not to be copied")
    (folder / "runs").mkdir()
    return folder


def write(store: Path, skeleton: Path, version: int, tensors: Any = WEIGHTS, **fields: Any) -> Manifest:
    return write_snapshot(
        store,
        weights_version=version,
        run_id="demo-1",
        incarnation=2,
        step=7,
        tensors=tensors,
        skeleton_folder=skeleton,
        **fields,
    )


def test_a_version_is_a_whole_model_folder_that_names_its_origin(tmp_path: Path, skeleton: Path) -> None:
    manifest = write(tmp_path / "store", skeleton, 12, tied={"head.weight": "embed.weight"})
    folder = tmp_path / "store" / "v00000012"
    assert sorted(path.name for path in folder.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (folder / "tokenizer.json").read_text() == "content of tokenizer.json"
    assert all(torch.equal(tensor, WEIGHTS[name]) for name, tensor in load_file(folder / "model.safetensors").items())
    assert (manifest.weights_version, manifest.incarnation, manifest.step) == (12, 2, 7)
    assert (manifest.dtype, manifest.base_version, manifest.tied) == (
        "float32",
        None,
        {"head.weight": "embed.weight"},
    )
    assert read_manifest(folder) == verify(folder) == manifest


def test_digests_are_blake3_of_the_files_and_xxh3_of_the_elements(tmp_path: Path, skeleton: Path) -> None:
    manifest = write(tmp_path, skeleton, 1)
    for entry in manifest.files:
        content = (tmp_path / "v00000001" / entry.name).read_bytes()
        assert (entry.num_bytes, entry.digests) == (len(content), (blake3(content).hexdigest()[:32],))
    elements = xxhash.xxh3_128(torch.arange(6.0).numpy().tobytes()).hexdigest()
    assert manifest.tensors[0].model_dump() == {
        "name": "embed.weight",
        "dtype": "float32",
        "shape": (2, 3),
        "digest": elements,
    }


def test_views_shared_memory_and_generators_are_stored_as_they_look(tmp_path: Path, skeleton: Path) -> None:
    whole = torch.arange(12.0)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        yield "first", whole[:6].reshape(2, 3)
        yield "transposed", whole.reshape(3, 4).T
        yield "again", whole
        yield "once more", whole

    write(tmp_path, skeleton, 1, tensors=tensors())
    stored = load_file(tmp_path / "v00000001" / "model.safetensors")
    assert stored["first"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert torch.equal(stored["transposed"], whole.reshape(3, 4).T)
    assert torch.equal(stored["again"], whole)
    assert torch.equal(stored["once more"], whole)


def test_tied_names_are_left_out_and_must_stand_for_something(tmp_path: Path, skeleton: Path) -> None:
    tensors = {"embed.weight": torch.ones(2), "head.weight": torch.ones(2)}
    manifest = write(tmp_path, skeleton, 1, tensors=tensors, tied={"head.weight": "embed.weight"})
    assert [entry.name for entry in manifest.tensors] == ["embed.weight"]
    with pytest.raises(WeightsError, match=r"missing\.weight"):
        write(tmp_path, skeleton, 2, tensors=tensors, tied={"head.weight": "missing.weight"})


@pytest.mark.parametrize("version", [0, 3, 5])
def test_numbers_only_go_up(tmp_path: Path, skeleton: Path, version: int) -> None:
    write(tmp_path, skeleton, 5)
    with pytest.raises(WeightsError, match="has version 5"):
        write(tmp_path, skeleton, version)


def test_a_failed_write_leaves_nothing(tmp_path: Path, skeleton: Path) -> None:
    def tensors() -> Iterator[tuple[str, Tensor]]:
        yield "w", torch.ones(2)
        yield "w", torch.ones(2)

    with pytest.raises(WeightsError, match="comes twice"):
        write(tmp_path / "store", skeleton, 1, tensors=tensors())
    (skeleton / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"config\.json"):
        write(tmp_path / "store", skeleton, 1)
    assert newest_version(tmp_path / "store") is None


def test_a_write_that_fails_half_way_leaves_no_files(tmp_path: Path, skeleton: Path) -> None:
    (skeleton / "merges.txt").symlink_to("/proc/self/mem")
    with pytest.raises(WeightsError, match="cannot write weights"):
        write(tmp_path / "store", skeleton, 1)
    assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_every_flipped_byte_is_found(tmp_path: Path, skeleton: Path, name: str) -> None:
    write(tmp_path, skeleton, 1)
    path = tmp_path / "v00000001" / name
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(WeightsError, match=name):
            verify(path.parent)


def test_missing_additional_and_shortened_files_are_found(tmp_path: Path, skeleton: Path) -> None:
    write(tmp_path, skeleton, 1)
    folder = tmp_path / "v00000001"
    (folder / "model-2.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"model-2\.safetensors"):
        verify(folder)
    (folder / "model-2.safetensors").unlink()
    (folder / "config.json").write_text("")
    with pytest.raises(WeightsError, match="has 0 bytes"):
        verify(folder)
    (folder / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"config\.json"):
        verify(folder)
    (folder / "manifest.json").write_text(json.dumps({}))
    with pytest.raises(WeightsError, match="malformed"):
        verify(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(WeightsError, match="no weights manifest"):
        verify(folder)


def test_only_finished_versions_are_listed(tmp_path: Path, skeleton: Path) -> None:
    assert (versions(tmp_path / "store"), newest_version(tmp_path / "store")) == ([], None)
    write(tmp_path, skeleton, 9)
    write(tmp_path, skeleton, 123456789)
    for name in (".unfinished-x", "v12", "vx", "v00000010.part", "v000000011"):
        (tmp_path / name).mkdir()
    assert (versions(tmp_path), newest_version(tmp_path)) == ([9, 123456789], 123456789)


def test_prune_keeps_the_newest_and_what_is_protected(tmp_path: Path, skeleton: Path) -> None:
    for version in (1, 2, 3, 4, 5):
        write(tmp_path, skeleton, version)
    assert prune(tmp_path, keep=2, protect={1, 99}) == [2, 3]
    assert versions(tmp_path) == [1, 4, 5]
    assert prune(tmp_path, keep=1) == [1, 4]
    assert prune(tmp_path, keep=1) == []
    assert [path.name for path in tmp_path.glob(".unfinished-*")] == []
    with pytest.raises(ValueError, match="keep is 0"):
        prune(tmp_path, keep=0)


def test_what_a_killed_writer_left_is_removed(tmp_path: Path, skeleton: Path) -> None:
    write(tmp_path, skeleton, 1)
    (tmp_path / ".unfinished-abc").mkdir()
    (tmp_path / ".unfinished-abc" / "model.safetensors").write_bytes(b"half")
    remove_unfinished(tmp_path)
    assert versions(tmp_path) == [1]
    assert list(tmp_path.glob(".unfinished-*")) == []


def test_a_copy_of_a_model_has_its_digest_and_other_weights_have_another(tmp_path: Path, skeleton: Path) -> None:
    write(tmp_path / "one", skeleton, 1)
    write(tmp_path / "two", skeleton, 1)
    first, second = tmp_path / "one" / "v00000001", tmp_path / "two" / "v00000001"
    assert model_digest(first) == model_digest(second)
    weights = bytearray((second / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (second / "model.safetensors").write_bytes(weights)
    assert model_digest(first) != model_digest(second)


def adapters(tmp_path: Path, skeleton: Path) -> Path:
    """A store of frozen weights, version 1, and two adapters to them."""
    store = tmp_path / "store"
    (skeleton / "adapter").mkdir()
    (skeleton / "adapter" / "adapter_config.json").write_text("{}")
    write(store, skeleton, 1, is_base=True)
    for version in (2, 3):
        write(store, skeleton / "adapter", version, {"a": torch.full((2,), version)}, base_version=1)
    return store


def test_an_adapter_is_a_version_of_its_own_files_alone(tmp_path: Path, skeleton: Path) -> None:
    store = adapters(tmp_path, skeleton)
    folder = store / "v00000003"
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    }
    manifest = verify(folder)
    assert (manifest.base_version, manifest.is_base, manifest.patches) == (1, False, ())
    assert load_file(folder / "adapter_model.safetensors")["a"].tolist() == [3.0, 3.0]
    assert base_of(folder) == store / "v00000001" == base_of(store / "v00000001")
    assert base_of(skeleton) == skeleton
    with pytest.raises(WeightsError, match=r"no adapter_config.json in"):
        write(store, skeleton, 4, base_version=1)


def test_frozen_weights_are_never_the_newest_version_and_stay_while_any_belongs_to_them(
    tmp_path: Path, skeleton: Path
) -> None:
    store = adapters(tmp_path, skeleton)
    assert newest_policy(store) == 3
    assert prune(store, keep=1) == [2]
    assert versions(store) == [1, 3]
    write(store, skeleton, 4, is_base=True)
    assert (newest_policy(store), newest_version(store)) == (3, 4)
    assert prune(store, keep=1) == []
    write(store, skeleton / "adapter", 5, {"a": torch.zeros(2)}, base_version=4)
    assert prune(store, keep=1) == [1, 3]
    assert newest_policy(tmp_path / "nowhere") is None


def test_frozen_weights_are_found_again_by_names_types_and_shapes(tmp_path: Path, skeleton: Path) -> None:
    store = adapters(tmp_path, skeleton)
    assert newest_base(store, WEIGHTS) == 1
    assert newest_base(store, {name: tensor.bfloat16() for name, tensor in WEIGHTS.items()}) is None
    assert newest_base(tmp_path / "nowhere", WEIGHTS) is None
