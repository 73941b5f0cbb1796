from pathlib import Path

import torch

from learner.checkpoints.snapshot import Snapshot


def taken(state: object, snapshot: Snapshot | None = None) -> dict:
    snapshot = snapshot or Snapshot()
    snapshot.add(Path("folder/state.pt"), state)
    return snapshot.files[Path("folder/state.pt")]


def test_what_changes_afterwards_does_not_change_in_the_copy() -> None:
    state = {"weights": torch.arange(5.0), "inner": [{"step": torch.tensor(3.0)}, (1, {"lr": 0.5})]}
    copy = taken(state)
    state["weights"].zero_()
    state["inner"][0]["step"].add_(1)
    state["inner"][1][1]["lr"] = 0.0
    assert torch.equal(copy["weights"], torch.arange(5.0))
    assert copy["inner"] == [{"step": torch.tensor(3.0)}, (1, {"lr": 0.5})]


def test_tensors_that_share_memory_share_it_in_the_copy() -> None:
    weight = torch.nn.Parameter(torch.ones(4, 3))
    copy = taken({"head": weight, "embedding": weight.detach(), "part": weight.detach()[1:]})
    assert copy["head"].data_ptr() == copy["embedding"].data_ptr()
    assert torch.equal(copy["part"], torch.ones(3, 3))
    assert copy["part"].untyped_storage().nbytes() == 36


def test_every_type_and_shape_comes_back() -> None:
    state = {
        "bfloat16": torch.randn(7, 3).to(torch.bfloat16),
        "int64": torch.arange(6).reshape(2, 3).t(),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.empty(0, 4, dtype=torch.float16),
    }
    copy = taken(state)
    for name, tensor in state.items():
        assert copy[name].dtype == tensor.dtype
        assert torch.equal(copy[name], tensor), name


def test_the_next_snapshot_uses_the_memory_of_the_one_before() -> None:
    snapshot = Snapshot()
    first = taken({"weights": torch.ones(1000)}, snapshot)["weights"].data_ptr()
    snapshot.clear()
    assert taken({"weights": torch.zeros(1000)}, snapshot)["weights"].data_ptr() == first
    snapshot.clear()
    assert torch.equal(taken({"weights": torch.ones(5000)}, snapshot)["weights"], torch.ones(5000))
