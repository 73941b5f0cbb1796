"""Tensors on disk, as the library of safetensors reads them."""

import json
from pathlib import Path

import pytest
import torch
import xxhash
from blake3 import blake3
from safetensors import safe_open
from safetensors.torch import load_file

from dcpo_async.errors import WeightsError
from dcpo_async.records import STRETCH_BYTES
from dcpo_async.weights.raw import raw_bytes
from dcpo_async.weights.stretches import StretchDigests, file_digests
from dcpo_async.weights.tensor_file import map_tensors, write_tensors

TENSORS = {
    "a.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.randn(1000, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "empty": torch.empty(0, 4, dtype=torch.int64),
    "scalar": torch.tensor(3, dtype=torch.int8),
    "flags": torch.tensor([True, False, True]),
    "half": torch.ones(5, dtype=torch.float16),
    "small": torch.ones(3, dtype=torch.float8_e4m3fn),
}


def test_what_was_written_is_what_the_library_loads(tmp_path: Path) -> None:
    write_tensors(tmp_path / "model.safetensors", TENSORS)
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert raw_bytes(found[name]).tobytes() == raw_bytes(tensor).tobytes(), name
    content = (tmp_path / "model.safetensors").read_bytes()
    header = json.loads(content[8 : (start := 8 + int.from_bytes(content[:8], "little"))])
    assert start % 8 == 0
    for name, tensor in TENSORS.items():
        assert header[name]["data_offsets"][0] % tensor.element_size() == 0, name
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_digests_are_those_of_the_bytes(tmp_path: Path) -> None:
    # Tensors that end within a stretch, and a file of three stretches.
    large = {"large": torch.arange(2_500_000, dtype=torch.float32), "b": TENSORS["b"]}
    digests = write_tensors(tmp_path / "model.safetensors", large)
    content = (tmp_path / "model.safetensors").read_bytes()
    stretches = [content[start : start + STRETCH_BYTES] for start in range(0, len(content), STRETCH_BYTES)]
    assert list(digests.file) == [blake3(stretch).hexdigest()[:32] for stretch in stretches]
    assert len(stretches) == 3
    assert file_digests(tmp_path / "model.safetensors") == digests.file
    assert digests.tensors == {name: xxhash.xxh3_128(raw_bytes(tensor)).hexdigest() for name, tensor in large.items()}


@pytest.mark.parametrize("num_bytes", [0, 1, STRETCH_BYTES - 1, STRETCH_BYTES, STRETCH_BYTES + 1, 2 * STRETCH_BYTES])
def test_every_stretch_has_a_digest_however_its_bytes_come(tmp_path: Path, num_bytes: int) -> None:
    content = bytes(range(256)) * (num_bytes // 256) + bytes(num_bytes % 256)
    stretches = StretchDigests()
    for start in range(0, num_bytes, 3_000_000):
        stretches.update(content[start : start + 3_000_000])
    (tmp_path / "file").write_bytes(content)
    assert stretches.digests() == file_digests(tmp_path / "file")
    assert len(file_digests(tmp_path / "file")) == -(-num_bytes // STRETCH_BYTES)


def test_a_written_file_is_mapped_and_changed_in_place(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, TENSORS)
    before = path.read_bytes()
    map_tensors(path)["half"][:] = 7
    assert path.read_bytes() == before
    mapped = map_tensors(path, for_change=True)
    assert {name: raw_bytes(tensor).tobytes() for name, tensor in mapped.items()} == {
        name: raw_bytes(tensor).tobytes() for name, tensor in TENSORS.items()
    }
    mapped["half"][:] = 7
    assert load_file(path)["half"].tolist() == [7] * 5


@pytest.mark.parametrize("content", [b"", b"1234", bytes(8), (1 << 62).to_bytes(8, "little") + b"{}", b"x" * 100])
def test_what_is_no_weights_file_is_not_mapped(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        map_tensors(tmp_path / "model.safetensors")


def test_a_file_that_was_cut_or_has_grown_is_not_mapped(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, TENSORS)
    content = path.read_bytes()
    for other in (content[:-1], content + b"x"):
        path.write_bytes(other)
        with pytest.raises(WeightsError, match="its header says"):
            map_tensors(path)


def test_no_tensors_are_a_file_too(tmp_path: Path) -> None:
    write_tensors(tmp_path / "model.safetensors", {})
    assert load_file(tmp_path / "model.safetensors") == {}


def test_a_name_of_the_files_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="__metadata__"):
        write_tensors(tmp_path / "model.safetensors", {"__metadata__": torch.zeros(2)})


def test_a_type_that_safetensors_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="tensor 'z' is complex64"):
        write_tensors(tmp_path / "model.safetensors", {"z": torch.zeros(2, dtype=torch.complex64)})
