import pytest

from dcpo_async.config import RunConfig
from learner.trainer.settings import deepspeed_settings


def zero_options(zero_stage: int, *, on_gpus: bool, **options: object) -> dict[str, object]:
    training = {"zero_stage": zero_stage, "deepspeed": {"zero_optimization": options} if options else {}}
    settings = deepspeed_settings(RunConfig(training=training), 2, on_gpus=on_gpus)  # type: ignore[arg-type]
    found: dict[str, object] = settings["zero_optimization"]
    return found


@pytest.mark.parametrize("zero_stage", [1, 2])
def test_gradients_are_summed_during_the_backward_pass_on_gpus(zero_stage: int) -> None:
    assert zero_options(zero_stage, on_gpus=True)["overlap_comm"] is True
    assert "overlap_comm" not in zero_options(zero_stage, on_gpus=False)
    assert zero_options(zero_stage, on_gpus=True, overlap_comm=False)["overlap_comm"] is False


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_where_there_is_nothing_to_overlap_or_deepspeed_does_so_anyway_it_is_left_alone(zero_stage: int) -> None:
    assert zero_options(zero_stage, on_gpus=True) == {"stage": zero_stage}
