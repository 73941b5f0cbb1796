"""Beside each whole version the patch from the one before, and in its manifest the chain that leads to it."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dcpo_async.weights.manifest import Manifest, read_manifest
from dcpo_async.weights.patch import apply_patch
from dcpo_async.weights.places import patches_folder, version_folder
from dcpo_async.weights.store import prune, verify, write_snapshot
from dcpo_async.weights.stretches import file_digests
from dcpo_async.weights.tensor_file import WEIGHTS_NAME

NUM_ELEMENTS = 20_000


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "skeleton").mkdir()
    (tmp_path / "skeleton" / "config.json").write_text("{}")
    return tmp_path / "store"


def weights(version: int, num_elements: int = NUM_ELEMENTS) -> dict[str, Tensor]:
    """Ten elements more are one with every version."""
    tensor = torch.zeros(num_elements, dtype=torch.bfloat16)
    tensor[: 10 * version] = 1
    return {"w": tensor, "same": torch.arange(3)}


def write(store: Path, version: int, tensors: dict[str, Tensor] | None = None, run_id: str = "run") -> Manifest:
    return write_snapshot(
        store, weights_version=version, run_id=run_id, incarnation=1, step=version,
        tensors=weights(version) if tensors is None else tensors, skeleton_folder=store.parent / "skeleton", threads=2,
    )  # fmt: skip


def chain(manifest: Manifest) -> list[tuple[int, int]]:
    return [(entry.base_version, entry.weights_version) for entry in manifest.patches]


def test_each_version_stands_whole_and_names_the_chain_that_leads_to_it(store: Path) -> None:
    assert chain(write(store, 1)) == []
    assert chain(write(store, 4)) == [(1, 4)]
    manifest = write(store, 5)
    assert chain(manifest) == [(1, 4), (4, 5)]
    assert verify(version_folder(store, 5)) == manifest
    for entry in manifest.patches:
        path = patches_folder(store) / entry.name
        assert (path.stat().st_size, file_digests(path)) == (entry.num_bytes, entry.digests)
        base, new = (
            load_file(version_folder(store, number) / WEIGHTS_NAME)
            for number in (entry.base_version, entry.weights_version)
        )
        patched = apply_patch(base, path.read_bytes())
        assert all(torch.equal(patched[name], new[name]) for name in new)
    assert sorted(path.name for path in store.iterdir()) == ["patches", "v00000001", "v00000004", "v00000005"]


def test_patches_outlive_their_versions_until_nobody_lists_them(store: Path) -> None:
    for version in range(1, 5):
        write(store, version)
    prune(store, keep=1)
    assert chain(read_manifest(version_folder(store, 4))) == [(1, 2), (2, 3), (3, 4)]
    assert sorted(path.name for path in patches_folder(store).iterdir()) == [f"0000000{n}.patch" for n in (2, 3, 4)]
    write(store, 5, {"other": torch.zeros(9)})
    prune(store, keep=1)
    assert list(patches_folder(store).iterdir()) == []


def test_a_patch_of_a_version_that_is_about_to_stand_is_not_removed(store: Path) -> None:
    write(store, 1)
    patches_folder(store).mkdir()
    (patches_folder(store) / "00000002.patch").write_bytes(b"x")
    prune(store, keep=1)
    assert (patches_folder(store) / "00000002.patch").exists()


def test_a_chain_is_never_dearer_than_half_the_whole(store: Path) -> None:
    for version in range(1, 30):
        tensors = {"w": torch.zeros(NUM_ELEMENTS, dtype=torch.bfloat16)}
        tensors["w"].view(torch.int16)[::4] = torch.randint(1 << 14, (NUM_ELEMENTS // 4,), dtype=torch.int16)
        manifest = write(store, version, tensors)
        whole = sum(entry.num_bytes for entry in manifest.files if entry.name == WEIGHTS_NAME)
        assert sum(entry.num_bytes for entry in manifest.patches) <= whole / 2
    assert 1 <= len(manifest.patches) < 28


def test_a_chain_has_at_most_64_patches(store: Path) -> None:
    for version in range(1, 68):
        manifest = write(store, version, weights(version, 1_000_000 // 8))
        prune(store, keep=1)
    assert chain(manifest) == [(number, number + 1) for number in range(3, 67)]


@pytest.mark.parametrize("harm", ["other run", "other layout", "other names", "no manifest", "cut", "no file", "dense"])
def test_without_a_base_that_fits_there_is_no_patch_and_the_log_says_why(
    store: Path, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    caplog.set_level(logging.INFO)
    write(store, 1)
    base = version_folder(store, 1)
    new = weights(2)
    match harm:
        case "other layout":
            new["w"] = torch.zeros(7)
        case "other names":
            new["v"] = new.pop("w")
        case "no manifest":
            (base / "manifest.json").unlink()
        case "cut":
            (base / WEIGHTS_NAME).write_bytes((base / WEIGHTS_NAME).read_bytes()[:-1])
        case "no file":
            (base / WEIGHTS_NAME).unlink()
        case "dense":
            new["w"] = torch.randn(NUM_ELEMENTS).bfloat16()
    manifest = write(store, 2, new, run_id="other" if harm == "other run" else "run")
    assert chain(manifest) == []
    assert verify(version_folder(store, 2)) == manifest
    assert "version 2 has no patch" in caplog.text
    # The next one begins a chain.
    new["w" if "w" in new else "v"][:1] = 5
    assert harm == "other layout" or chain(write(store, 3, new, run_id=manifest.run_id)) == [(2, 3)]


def test_a_chain_ends_where_a_patch_is_gone(store: Path) -> None:
    for version in (1, 2, 3):
        write(store, version)
    (patches_folder(store) / "00000002.patch").unlink()
    assert chain(write(store, 4)) == [(2, 3), (3, 4)]


def test_a_version_that_moved_nearly_everywhere_has_no_patch_and_costs_no_try(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    elements = torch.linspace(-1, 1, 2_000_000)
    write(store, 1, {"w": elements})
    with caplog.at_level(logging.INFO):
        assert write(store, 2, {"w": elements * 1.001}).patches == ()
    assert "version 2 has no patch: 100 % of its elements have changed" in caplog.text
    few = elements * 1.001
    few[::10] += 1
    assert chain(write(store, 3, {"w": few})) == [(2, 3)]
