"""Real DeepSpeed engines on two ranks go on from a checkpoint to the bit, also from one that an older release wrote."""

from pathlib import Path

import pytest

from dcpo_async.processes import last_lines, module_argv, spawn
from tests.learner.ranks import run_ranks
from tests.learner.trainer.test_trainer import make_config

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    ("zero_stage", "dtype"),
    [
        (2, "bfloat16"),
        (3, "bfloat16"),
        *(pytest.param(stage, "float32", marks=pytest.mark.thorough) for stage in range(4)),
        *(pytest.param(stage, "bfloat16", marks=pytest.mark.thorough) for stage in range(2)),
    ],
)
async def test_two_ranks_go_on_to_the_bit(tmp_path: Path, zero_stage: int, dtype: str) -> None:
    config = make_config(tmp_path / "run", training={"zero_stage": zero_stage})
    config = config.model_copy(
        update={
            "model": config.model.model_copy(update={"dtype": dtype}),
            "checkpoint": config.checkpoint.model_copy(update={"interval_steps": 2}),
        }
    )
    (tmp_path / "config.json").write_text(config.model_dump_json())
    words = (tmp_path / "config.json", tmp_path)
    await run_ranks("tests.learner.checkpoints.resuming_rank", *words, folder=tmp_path)
    now, before, parameters = map(int, (tmp_path / "sizes").read_text().split())
    # ZeRO-1 and 2 wrote the weights of the forward pass beside the same in float32; files align tensors otherwise.
    saved = (4 if dtype == "float32" else 2) * parameters if zero_stage in (1, 2) else 0
    assert before - now == pytest.approx(saved, abs=50_000)


@pytest.mark.parametrize(
    ("zero_stage", "dtype"),
    [
        (0, "float32"),
        (3, "bfloat16"),
        *(pytest.param(stage, "bfloat16", marks=pytest.mark.thorough) for stage in range(3)),
        *(pytest.param(stage, "float32", marks=pytest.mark.thorough) for stage in range(1, 4)),
    ],
)
async def test_two_ranks_that_train_an_adapter_go_on_to_the_bit_from_a_checkpoint_of_the_adapter_alone(
    tmp_path: Path, zero_stage: int, dtype: str
) -> None:
    config = make_config(tmp_path / "run", training={"zero_stage": zero_stage}, adapter={"rank": 2})
    config = config.model_copy(
        update={
            "model": config.model.model_copy(update={"dtype": dtype}),
            "checkpoint": config.checkpoint.model_copy(update={"interval_steps": 2}),
        }
    )
    (tmp_path / "config.json").write_text(config.model_dump_json())
    words = (tmp_path / "config.json", tmp_path)
    await run_ranks("tests.learner.checkpoints.resuming_rank", *words, folder=tmp_path)
    now, _, parameters = map(int, (tmp_path / "sizes").read_text().split())
    # Adam's moments and float32 weights of some 7 % of the parameters, and the words of two ranks' files.
    trained = 2 * 2 * (4 * (64 + 64) + 3 * (64 + 128))
    assert parameters > 10 * trained
    assert now < 16 * trained + 100_000


async def test_killed_at_every_line_of_a_save_nothing_half_written_is_ever_found(tmp_path: Path) -> None:
    argv = module_argv("tests.learner.checkpoints.killed_writing", str(tmp_path))
    process = await spawn(argv, tmp_path / "log", {"OMP_NUM_THREADS": "1"})
    assert await process.wait() == 0, last_lines(tmp_path / "log", 60)
    before, after = map(int, last_lines(tmp_path / "log", 1).split())
    assert before > 50
    assert after > 10
