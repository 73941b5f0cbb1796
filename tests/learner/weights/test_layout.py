from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from learner.weights.layout import ALIGNMENT, Layout, Schema, own_parts, tied_names
from tests.tiny_model import make_tiny_model


class WithBuffers(nn.Module):
    """A parameter with two names, a persistent buffer in float32, one that no checkpoint has, a scalar, nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.arange(7, dtype=torch.float32))
        self.second = nn.Parameter(torch.randn(3, 5))
        self.tied = self.first
        self.empty = nn.Parameter(torch.empty(0, 4))
        self.register_buffer("kept", torch.randn(4))
        self.register_buffer("scalar", torch.tensor(2.5))
        self.register_buffer("derived", torch.randn(6), persistent=False)


def copied(model: nn.Module, num_ranks: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a state that ranks write one after another, each its own parts alone."""
    layout = Layout.of(model, dtype)
    state = torch.full((layout.num_bytes,), 0xAB, dtype=torch.uint8)
    tensors = layout.tensors(state)
    for rank in range(num_ranks):
        for part in own_parts(model, rank, num_ranks):
            tensors[part.name].reshape(-1)[part.start : part.start + len(part.values)].copy_(part.values)
    return tensors


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_ranks_together_copy_every_bit_of_the_model(num_ranks: int, dtype: torch.dtype) -> None:
    model = WithBuffers()
    found = copied(model, num_ranks, dtype)
    assert found.keys() == {"first", "second", "empty", "kept", "scalar"}
    for name in ("first", "second", "empty"):
        assert torch.equal(found[name], getattr(model, name).to(dtype)), name
    for name in ("kept", "scalar"):
        assert torch.equal(found[name], getattr(model, name)), name


def test_no_two_ranks_copy_the_same_and_none_copies_more_than_its_share() -> None:
    model = WithBuffers()
    counts = [sum(len(part.values) for part in own_parts(model, rank, 3)) for rank in range(3)]
    assert sum(counts) == 7 + 15 + 4 + 1
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
def test_slices_of_partitioned_parameters_are_copied_without_their_padding(num_ranks: int) -> None:
    model, whole = nn.Module(), {"weight": torch.randn(5, 3), "bias": torch.randn(2)}
    states = []
    for rank in range(num_ranks):
        model = nn.Module()
        for name, tensor in whole.items():
            parameter = nn.Parameter(torch.empty(0))
            size = -(-tensor.numel() // num_ranks)
            padded = torch.cat([tensor.reshape(-1), torch.full((size * num_ranks - tensor.numel(),), torch.nan)])
            parameter.ds_tensor = padded[rank * size : (rank + 1) * size]
            parameter.ds_shape, parameter.ds_numel = tensor.shape, tensor.numel()
            parameter.ds_zero_partition_rank = rank
            model.register_parameter(name, parameter)
        states.append((model, list(own_parts(model, rank, num_ranks))))
    layout = Layout.of(model, torch.float32)
    tensors = layout.tensors(torch.zeros(layout.num_bytes, dtype=torch.uint8))
    for _, parts in states:
        for part in parts:
            tensors[part.name].reshape(-1)[part.start : part.start + len(part.values)].copy_(part.values)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in whole.items())


def test_tensors_begin_at_multiples_and_the_schema_survives_its_text() -> None:
    model = WithBuffers()
    schema = Schema(layout=Layout.of(model, torch.bfloat16), tied=tied_names(model))
    assert schema.tied == {"tied": "first"}
    assert all(place.start % ALIGNMENT == 0 for place in schema.layout.places.values())
    assert Schema.model_validate_json(schema.model_dump_json()) == schema


def test_a_tied_head_is_published_once_under_the_name_of_the_embedding(tmp_path: Path) -> None:
    make_tiny_model(tmp_path, seed=1, tied=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert tied_names(model) == {"lm_head.weight": "model.embed_tokens.weight"}
    assert "lm_head.weight" not in Layout.of(model, torch.float32).places
