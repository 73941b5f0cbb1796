import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dcpo_async.errors import CheckpointError
from learner.checkpoints.folder import CheckpointLayout
from learner.checkpoints.reslicing import OptimizerPart, SlicedCheckpoint
from learner.checkpoints.slicing import Slicing

SHAPES = {"a": (5, 3), "b": (4,), "c": (2, 2, 3)}
KINDS = ("weights", "exp_avg", "exp_avg_sq")


def whole(seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """Whole parameters and moments, by kind and name."""
    generator = torch.Generator().manual_seed(seed)
    return {
        kind: {name: torch.randn(math.prod(shape), generator=generator) for name, shape in SHAPES.items()}
        for kind in KINDS
    }


def slicing(num_ranks: int, zero_stage: int) -> Slicing:
    return Slicing.of([SHAPES], num_ranks, by_parameter=zero_stage == 3)


def part(values: dict[str, dict[str, Tensor]], cut: Slicing, rank: int) -> OptimizerPart:
    """A rank's part, made in another way than by `copies`."""
    group = {kind: torch.zeros(cut.size(0)) for kind in values}
    for kind, flat in group.items():
        for name, first, length, _, start in cut.stretches(rank):
            flat[start : start + length] = values[kind][name][first : first + length]
    return OptimizerPart([group], 7.0)


def write(path: Path, num_ranks: int, zero_stage: int, values: dict[str, dict[str, Tensor]]) -> CheckpointLayout:
    """The files that DeepSpeed would leave, as far as they are looked at."""
    path.mkdir()
    cut = slicing(num_ranks, zero_stage)
    model = {"module": {}, "param_shapes": [{name: torch.Size(shape) for name, shape in SHAPES.items()}]}
    for rank in range(num_ranks):
        name = f"zero_pp_rank_{rank}_mp_rank_00"
        torch.save(model, path / (f"{name}_model_states.pt" if zero_stage == 3 else "mp_rank_00_model_states.pt"))
        template: dict[str, Any] = {"fp32_flat_groups": [], "optimizer_state_dict": {}}
        if zero_stage != 3:
            places = {s.name: SimpleNamespace(start=s.start, numel=s.length) for s in cut.stretches(rank)}
            template = {"single_partition_of_fp32_groups": [], "base_optimizer_state": {}}
            template["param_slice_mappings"] = [places]
        state = part(values, cut, rank).into(template)
        torch.save({"optimizer_state_dict": state}, path / f"bf16_{name}_optim_states.pt")
    return CheckpointLayout(num_ranks=num_ranks, zero_stage=zero_stage, dtype="torch.float32")


@pytest.mark.parametrize("before", [(2, 2), (3, 3), (1, 1)])
@pytest.mark.parametrize("after", [(1, 2), (3, 2), (2, 3), (4, 3)])
def test_ranks_get_their_parts_of_what_others_wrote(
    tmp_path: Path, before: tuple[int, int], after: tuple[int, int]
) -> None:
    values = whole()
    there = SlicedCheckpoint(tmp_path / "step", write(tmp_path / "step", *before, values))
    cut = slicing(*after)
    digests = []
    for rank in range(after[0]):
        found, expected = there.part(cut, rank), part(values, cut, rank)
        assert found.num_updates == 7.0
        assert found.groups[0].keys() == expected.groups[0].keys()
        for kind, flat in expected.groups[0].items():
            assert torch.equal(found.groups[0][kind], flat), (rank, kind)
        digests.append(found.digest(cut.stretches(rank)))
    assert sum(digests) % (1 << 64) == there.digest(range(before[0]))


def digest(values: dict[str, dict[str, Tensor]], cut: Slicing) -> int:
    return sum(part(values, cut, rank).digest(cut.stretches(rank)) for rank in range(cut.num_ranks)) % (1 << 64)


@settings(deadline=None)
@given(st.integers(1, 7), st.booleans(), st.sampled_from(KINDS), st.sampled_from(sorted(SHAPES)), st.data())
def test_the_digest_changes_with_each_bit_and_not_with_the_cut(
    num_ranks: int, by_parameter: bool, kind: str, name: str, data: st.DataObject
) -> None:
    values, cut = whole(), Slicing.of([SHAPES], num_ranks, by_parameter=by_parameter)
    expected = digest(values, slicing(1, 2))
    assert digest(values, cut) == expected
    element, bit = data.draw(st.integers(0, math.prod(SHAPES[name]) - 1)), data.draw(st.integers(0, 31))
    values[kind][name].view(torch.int32)[element] ^= 1 << bit if bit < 31 else -(1 << 31)
    assert digest(values, cut) != expected


def test_the_digest_knows_places_names_and_kinds() -> None:
    cut, expected = slicing(2, 2), digest(whole(), slicing(1, 2))
    swapped = whole()
    swapped["weights"]["b"][[0, 1]] = swapped["weights"]["b"][[1, 0]]
    assert digest(swapped, cut) != expected
    swapped = whole()
    swapped["exp_avg"], swapped["exp_avg_sq"] = swapped["exp_avg_sq"], swapped["exp_avg"]
    assert digest(swapped, cut) != expected
    zeros = {kind: {name: torch.zeros(math.prod(shape)) for name, shape in SHAPES.items()} for kind in KINDS}
    assert digest(zeros, cut) != 0


def rewritten(path: Path, rank: int, **changes: Any) -> None:
    file = next(path.glob(f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"))
    state = torch.load(file, weights_only=False)["optimizer_state_dict"]
    torch.save({"optimizer_state_dict": state | changes}, file)


def test_files_that_do_not_hold_what_their_layout_says_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "step"
    layout = write(path, 2, 2, whole())
    elsewhere = {"a": SimpleNamespace(start=0, numel=15), "b": SimpleNamespace(start=16, numel=1)}
    rewritten(path, 0, param_slice_mappings=[elsewhere])
    with pytest.raises(CheckpointError, match=r"lie in other places\); start the learner with 2 ranks, as before"):
        SlicedCheckpoint(path, layout)
    rewritten(path, 0, param_slice_mappings=None, single_partition_of_fp32_groups=[torch.zeros(20)])
    with pytest.raises(CheckpointError, match=r"flat tensors of \[16, 20\] elements in place of 16"):
        SlicedCheckpoint(path, layout)
    next(path.glob("*rank_0_mp_rank_00_optim_states.pt")).unlink()
    with pytest.raises(CheckpointError, match="0 files of the optimizer of rank 0"):
        SlicedCheckpoint(path, layout)


def test_a_model_with_other_parameters_is_refused(tmp_path: Path) -> None:
    there = SlicedCheckpoint(tmp_path / "step", write(tmp_path / "step", 2, 3, whole()))
    with pytest.raises(CheckpointError, match="other parameters"):
        there.part(Slicing.of([SHAPES | {"d": (2,)}], 1, by_parameter=True), 0)
