import pytest
import torch
from torch import Tensor, nn

from learner.weights.layout import ALIGNMENT, Layout, Schema, TensorView, own_parts, published_tensors


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
    views = {"kept": TensorView("kept", (2, 2), (1, 2), 0)}
    schema = Schema(layout=Layout.of(WithBuffers(), torch.bfloat16), views=views, tied={"tied": "kept"})
    assert all(place.start % ALIGNMENT == 0 for place in schema.layout.places.values())
    assert Schema.model_validate_json(schema.model_dump_json()) == schema


def test_what_is_published_of_a_state_has_the_form_of_the_checkpoint() -> None:
    model = WithBuffers()
    views = {"half": TensorView("first", (3,), (2,), 1), "turned": TensorView("second", (5, 3), (1, 5), 0)}
    schema = Schema(layout=Layout.of(model, torch.float32), views=views, tied={})
    state = torch.zeros(schema.layout.num_bytes, dtype=torch.uint8)
    for part in own_parts(model, 0, 1):
        flat = schema.layout.tensors(state)[part.name].reshape(-1)
        flat[part.start : part.start + len(part.values)].copy_(part.values)
    found = schema.tensors(state)
    assert found["half"].tolist() == [1, 3, 5]
    assert torch.equal(found["turned"], model.second.T)


def test_a_parameter_that_a_model_does_not_train_is_published_like_any_other() -> None:
    model = WithBuffers()
    before = published_tensors(model).keys()
    next(model.parameters()).requires_grad_(False)
    assert published_tensors(model).keys() == before
