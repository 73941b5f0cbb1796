"""What a run on this machine means by `auto`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dcpo_async.config import ModelSettings, RunConfig
from dcpo_async.errors import ConfigError
from dcpo_async.run_folder import RunFolder
from learner.checkpoints.folder import CheckpointLayout, CheckpointMeta, step_folder
from learner.sizing.automatic import decided
from learner.sizing.fit import needs
from learner.sizing.machine import Machine
from learner.sizing.memory import ModelSize, Plan, RankMemory, rank_memory
from learner.sizing.rehearsal import Rehearsal

LARGE = 1 << 60
SIZE = ModelSize(1_000_000_000, 100_000_000)


class Model:
    """Activations take 1 GB with checkpointing and 10 without."""

    size = SIZE

    def memory(self, plan: Plan) -> RankMemory:
        body = Rehearsal(10**9 if plan.checkpointing else 10**10, 0)
        return rank_memory(SIZE, plan, body, body, body)


def chosen(
    folder: Path,
    num_ranks: int = 1,
    dtype: str = "float32",
    room: int | None = LARGE,
    *,
    on_gpus: bool | None = None,
    num_machines: int = 1,
    **training: Any,
) -> tuple[Any, Any]:
    """ZeRO stage and gradient checkpointing; room is that of each GPU, or of the host without any.

    Args:
        on_gpus: None is for bfloat16 alone.
    """
    on_gpus = dtype == "bfloat16" if on_gpus is None else on_gpus
    machine = Machine(gpu=room if on_gpus else None, host=LARGE if on_gpus else room or 0, shared=LARGE, disk=LARGE)
    config = RunConfig(folder=folder, model=ModelSettings(dtype=dtype), training=training)  # type: ignore[arg-type]
    config, plan = decided(config, Model(), machine, num_ranks, num_machines, on_gpus=on_gpus)
    found = (config.training.zero_stage, config.model.gradient_checkpointing)
    assert found == (plan.zero_stage, plan.checkpointing)
    assert plan == Plan.of(config, num_ranks, num_machines, on_gpus=on_gpus)
    return found


def write_checkpoint(folder: Path, step: int, zero_stage: int) -> None:
    path = RunFolder(folder).checkpoints / step_folder(step)
    path.mkdir(parents=True)
    layout = CheckpointLayout(num_ranks=1, zero_stage=zero_stage, dtype="torch.float32")
    meta = CheckpointMeta(step=step, config_digest="0", layout=layout, files={})
    (path / "meta.json").write_text(json.dumps(meta.model_dump()))


@pytest.mark.parametrize(
    ("num_ranks", "dtype", "training", "expected"),
    [
        (1, "float32", {}, 0),
        (2, "float32", {}, 2),
        # Gradients would add up in 8 bits, and updates be rounded away, without it.
        (1, "bfloat16", {}, 2),
        (4, "bfloat16", {}, 2),
        (1, "float32", {"zero_stage": 2}, 2),
        (4, "bfloat16", {"zero_stage": 3}, 3),
        (1, "float32", {"deepspeed": {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}}, 2),
    ],
)
def test_a_single_process_on_a_cpu_trains_without_zero_in_float32(
    tmp_path: Path, num_ranks: int, dtype: str, training: dict[str, Any], expected: int
) -> None:
    assert chosen(tmp_path, num_ranks, dtype, on_gpus=False, **training)[0] == expected
    assert chosen(tmp_path, num_ranks, dtype, on_gpus=True, **training)[0] == (expected or 2)


@pytest.mark.parametrize(
    ("num_ranks", "before", "expected"), [(1, 0, 0), (2, 0, 0), (1, 2, 2), (1, 3, 3), (2, 1, 2), (2, 3, 2)]
)
def test_a_run_goes_on_from_its_newest_checkpoint(tmp_path: Path, num_ranks: int, before: int, expected: int) -> None:
    write_checkpoint(tmp_path, 2, 2 if before == 0 else 0)
    write_checkpoint(tmp_path, 10, before)
    assert chosen(tmp_path, num_ranks)[0] == expected
    ranks = CheckpointLayout(num_ranks=num_ranks, zero_stage=expected, dtype="torch.float32")
    assert CheckpointLayout(num_ranks=1, zero_stage=before, dtype="torch.float32").is_loaded_by(ranks)
    assert chosen(tmp_path, num_ranks, zero_stage=1)[0] == 1


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    """The ranks, which are to load it, say what is wrong with it."""
    write_checkpoint(tmp_path, 2, 1)
    write_checkpoint(tmp_path, 10, 0)
    (RunFolder(tmp_path).checkpoints / step_folder(10) / "meta.json").write_text("{")
    assert chosen(tmp_path)[0] == 1


def test_options_of_zero_for_a_run_without_it_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 2, 0)
    offload = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    with pytest.raises(ConfigError, match=r"the checkpoint of step 2 in .* is without ZeRO, and so goes the run on"):
        chosen(tmp_path, 2, on_gpus=True, deepspeed=offload)


def test_activations_are_kept_in_at_most_half_of_what_is_there(tmp_path: Path) -> None:
    config = RunConfig(folder=tmp_path, model=ModelSettings(dtype="float32", gradient_checkpointing=False))
    plan = Plan.of(config, 1, on_gpus=False)
    host = needs(config, SIZE, plan, Model().memory(plan)).host
    assert chosen(tmp_path, room=2 * host) == (0, False)
    assert chosen(tmp_path, room=2 * host - 1) == (0, True)
    plan = replace(Plan.of(config, 2, on_gpus=True), value_bytes=2)
    gpu = Model().memory(plan).total
    assert chosen(tmp_path, 2, "bfloat16", 2 * gpu)[1] is False
    assert chosen(tmp_path, 2, "bfloat16", 2 * gpu - 1)[1] is True


def test_activations_are_computed_again_where_room_is_not_known(tmp_path: Path) -> None:
    assert chosen(tmp_path, 2, "bfloat16", None)[1] is True
    assert chosen(tmp_path, 4, "bfloat16", LARGE, num_machines=2)[1] is True
    config = RunConfig(folder=tmp_path, model=ModelSettings(dtype="float32"))
    assert decided(config, Model(), None, 1, on_gpus=False)[0].model.gradient_checkpointing is True


def test_what_is_set_is_not_decided(tmp_path: Path) -> None:
    machine = Machine(gpu=None, host=LARGE, shared=LARGE, disk=LARGE)
    for is_set in (True, False):
        model = ModelSettings(dtype="float32", gradient_checkpointing=is_set)
        config = RunConfig(folder=tmp_path, model=model)
        assert decided(config, Model(), machine, 1, on_gpus=False)[0].model.gradient_checkpointing is is_set
