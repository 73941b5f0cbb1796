"""Slices of ZeRO 3 on several machines: what is sent to the first one is the whole model there, without padding."""

from collections.abc import Mapping
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from learner.trainer.publication import Publication


def sliced(whole: Mapping[str, Tensor], rank: int, num_ranks: int) -> nn.Module:
    """A model as a rank of ZeRO 3 has it; its padding is no number."""
    model = nn.Module()
    for name, tensor in whole.items():
        parameter = nn.Parameter(torch.empty(0))
        size = -(-tensor.numel() // num_ranks)
        padded = torch.cat([tensor.reshape(-1), torch.full((size * num_ranks - tensor.numel(),), torch.nan)])
        parameter.ds_tensor = padded[rank * size : (rank + 1) * size]
        parameter.ds_shape, parameter.ds_numel = tensor.shape, tensor.numel()
        parameter.ds_zero_partition_rank = rank
        model.register_parameter(name, parameter)
    return model


def publication(
    whole: Mapping[str, Tensor], rank: int, num_ranks: int, num_local: int, sent: dict[int, Tensor]
) -> Publication:
    """A rank's, whose slices go through a dictionary in place of a network."""

    def swap_slices(own: Tensor | None, sizes: Mapping[int, int]) -> dict[int, Tensor]:
        if own is not None:
            sent[rank] = own
        assert {other: len(sent[other]) for other in sizes} == dict(sizes)
        return {other: sent[other] for other in sizes}

    made = Publication.__new__(Publication)
    made._engine = SimpleNamespace(  # type: ignore[assignment]
        model=sliced(whole, rank, num_ranks),
        rank=rank,
        num_ranks=num_ranks,
        local_rank=rank % num_local,
        num_local=num_local,
        dtype=torch.float32,
        swap_slices=swap_slices,
    )
    return made


@pytest.mark.parametrize(("num_ranks", "num_local"), [(2, 1), (4, 2), (6, 2), (9, 3)])
def test_the_first_machine_gets_every_element_of_the_others(num_ranks: int, num_local: int) -> None:
    whole = {"weight": torch.randn(5, 3), "bias": torch.randn(2), "norm": torch.randn(7)}
    state = {name: torch.full_like(tensor, torch.inf) for name, tensor in whole.items()}
    sent: dict[int, Tensor] = {}
    ranks = [publication(whole, rank, num_ranks, num_local, sent) for rank in range(num_ranks)]
    for rank in ranks[num_local:]:
        rank._send()
    for rank in ranks[:num_local]:
        rank._copy_into(state)
    assert all(torch.equal(state[name], tensor) for name, tensor in whole.items())
