"""Tensors on disk, as the library of safetensors reads them."""

import json
from pathlib import Path

import pytest
import torch
import xxhash
from safetensors import safe_open
from safetensors.torch import load_file

from dcpo_async.errors import WeightsError
from dcpo_async.weights.raw import raw_bytes
from dcpo_async.weights.tensor_file import write_tensors

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
    large = {"large": torch.arange(3_000_000, dtype=torch.float32), "b": TENSORS["b"]}
    digests = write_tensors(tmp_path / "model.safetensors", large)
    assert digests.file == xxhash.xxh3_128((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert digests.tensors == {name: xxhash.xxh3_128(raw_bytes(tensor)).hexdigest() for name, tensor in large.items()}


def test_no_tensors_are_a_file_too(tmp_path: Path) -> None:
    write_tensors(tmp_path / "model.safetensors", {})
    assert load_file(tmp_path / "model.safetensors") == {}


def test_a_name_of_the_files_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="__metadata__"):
        write_tensors(tmp_path / "model.safetensors", {"__metadata__": torch.zeros(2)})


def test_a_type_that_safetensors_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="tensor 'z' is complex64"):
        write_tensors(tmp_path / "model.safetensors", {"z": torch.zeros(2, dtype=torch.complex64)})
