"""More trainer processes change nothing but the speed: the same batches give the same run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load

from tests.system.conftest import STEADY
from tests.system.services import Services

pytestmark = [pytest.mark.system, pytest.mark.timeout(1300)]

TOLERANCE = 1e-5


@pytest.fixture(
    scope="module", params=[("0", "1"), ("2", "1"), ("3", "2")], ids=["without ZeRO", "with ZeRO-2", "sharing tokens"]
)
def two_workers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model: Path
) -> Iterator[Services]:
    """The steady run again, with two trainer processes."""
    with Services(tmp_path_factory.mktemp("workers"), model) as services:
        zero_stage, shared_by = request.param
        words = ("--workers", "2", "--training.zero_stage", zero_stage, "--training.sequence_parallel", shared_by)
        learner, actor = services.start_learner(*STEADY, *words), services.start_actor()
        services.ends_well(learner, seconds=600)
        services.ends_well(actor, seconds=600)
        assert "trainer rank 1 of 2" in learner.log
        yield services


@pytest.mark.parametrize("name", ["loss", "grad_norm", "reward", "tcr", "tokens"])
def test_two_workers_see_the_metrics_of_one(two_workers: Services, steady_run: Services, name: str) -> None:
    expected = [line[name] for line in steady_run.metrics()]
    assert [line[name] for line in two_workers.metrics()] == pytest.approx(expected, rel=TOLERANCE)


def test_two_workers_export_the_weights_of_one(two_workers: Services, steady_run: Services) -> None:
    expected, found = load(steady_run.exported_weights()), load(two_workers.exported_weights())
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        # Relative to the largest weight of a tensor: adding up in another order moves small ones by as much.
        assert (found[name] - tensor).abs().max() <= TOLERANCE * tensor.abs().max(), name
