"""Real DeepSpeed engines go on from checkpoints of another number of ranks, to the bit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.learner.ranks import run_ranks
from tests.learner.trainer.test_trainer import make_config

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]

STEPS = 2
"""Updates between two hand-overs."""


async def train(folder: Path, dtype: str, from_step: int, until_step: int, num_ranks: int, zero_stage: int) -> str:
    """Go on from the checkpoint of a step, take one of another; returns what the ranks have logged."""
    config = make_config(folder / "run", training={"zero_stage": zero_stage})
    config = config.model_copy(update={"model": config.model.model_copy(update={"dtype": dtype})})
    (folder / "config.json").write_text(config.model_dump_json())
    words = (folder / "config.json", folder, from_step, until_step)
    (folder / "log").write_text("")
    await run_ranks("tests.learner.checkpoints.resliced_rank", *words, num_ranks=num_ranks, folder=folder)
    return (folder / "log").read_text()


def assert_handed_over(folder: Path, step: int) -> None:
    """What the ranks loaded is what those before had, as DeepSpeed puts either together."""
    before, after = (load_file(folder / f"{name}-{step}.safetensors") for name in ("written", "loaded"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor.view(torch.int32), after[name].view(torch.int32)), name


async def train_in_parts(folder: Path, dtype: str, parts: list[tuple[int, int]]) -> None:
    """Train a run whose parts have these numbers of ranks and ZeRO stages, and look at each hand-over."""
    for number, (num_ranks, zero_stage) in enumerate(parts):
        step = number * STEPS
        log = await train(folder, dtype, step, step + STEPS, num_ranks, zero_stage)
        if number:
            assert_handed_over(folder, step)
            assert ("before and after" in log) == (zero_stage > 0)


def losses(folder: Path) -> list[float]:
    return [float(line) for line in (folder / "losses").read_text().split()]


async def test_ranks_go_on_from_what_others_wrote(tmp_path: Path) -> None:
    await train_in_parts(tmp_path, "bfloat16", [(2, 2), (1, 2), (2, 3)])
    assert len(losses(tmp_path)) == 3 * STEPS


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    "parts", [*([(2, stage), (1, stage), (3, stage)] for stage in range(4)), [(2, 3), (3, 1), (2, 2), (3, 3)]]
)
async def test_the_loss_goes_on_as_that_of_one_rank(tmp_path: Path, dtype: str, parts: list[tuple[int, int]]) -> None:
    for name in ("parts", "whole"):
        (tmp_path / name).mkdir()
    await train_in_parts(tmp_path / "parts", dtype, parts)
    await train(tmp_path / "whole", dtype, 0, len(parts) * STEPS, 1, parts[0][1])
    tolerance = 1e-5 if dtype == "float32" else 0.02
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), abs=tolerance)
    print([*zip(losses(tmp_path / "parts"), losses(tmp_path / "whole"), strict=True)])
