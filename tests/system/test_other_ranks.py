"""One run whose learner comes back with other numbers of trainer ranks; its actor stays."""

import json
import re
import signal
from pathlib import Path

import pytest

from tests.system.conftest import STEADY
from tests.system.services import Services, assert_counted_once

pytestmark = [pytest.mark.system, pytest.mark.timeout(5400)]


def test_by_itself_a_run_goes_on_with_zero_or_without_it_as_it_began(tmp_path: Path, model: Path) -> None:
    words = ("--training.zero_stage", "auto", "--model.gradient_checkpointing", "auto", "--training.max_steps", "6")
    with Services(tmp_path, model) as services:
        actor = services.start_actor("--tokens-per-second", "50")
        learner = services.start_learner(*words, "--workers", "1")
        services.until("step 2", lambda: len(services.metrics()) >= 2, 600)
        learner.signal(signal.SIGTERM)
        services.ends_well(learner, seconds=600)
        learner = services.start_learner(*words, "--workers", "2")
        services.ends_well(learner, seconds=600)
        services.ends_well(actor, seconds=300)
        ran = json.loads((services.run / "config.json").read_text())
        assert (ran["training"]["zero_stage"], ran["model"]["gradient_checkpointing"]) == (0, False)
        assert "is with ZeRO 0, which a run keeps to" in learner.log
        assert "settings have changed" not in (services.run / "logs" / "trainer.log").read_text()
        assert [line["step"] for line in services.metrics()] == [1, 2, 3, 4, 5, 6]
        assert_counted_once(services)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_two_ranks_then_one_then_three_train_what_one_does(
    tmp_path: Path, model: Path, steady_run: Services, zero_stage: int, dtype: str
) -> None:
    words = [*STEADY, "--training.zero_stage", str(zero_stage), "--model.dtype", dtype]
    with Services(tmp_path, model) as services:
        actor = services.start_actor("--tokens-per-second", "50")
        for num_ranks, until_step in ((2, 4), (1, 8)):
            learner = services.start_learner(*words, "--workers", str(num_ranks))
            services.until(f"step {until_step}", lambda step=until_step: len(services.metrics()) >= step, 1800)
            learner.signal(signal.SIGTERM)
            services.ends_well(learner, seconds=1800)
        learner = services.start_learner(*words, "--workers", "3")
        services.ends_well(learner, seconds=1800)
        services.ends_well(actor, seconds=600)
        log = (services.run / "logs" / "trainer.log").read_text()
        assert re.findall(r"checkpoint of (\d) ranks under ZeRO . goes on with (\d)", log) == [("2", "1"), ("1", "3")]
        assert_counted_once(services)
        query = "SELECT position, step FROM steps ORDER BY position"
        assert services.ledger(query) == steady_run.ledger(query)
        assert services.ledger("SELECT COUNT(*), COUNT(DISTINCT step) FROM steps") == [(48, 12)]
        losses, expected = ([line["loss"] for line in run.metrics()] for run in (services, steady_run))
        print(zero_stage, dtype, max(abs(a - b) for a, b in zip(losses, expected, strict=True)), losses)
        assert losses == pytest.approx(expected, abs=1e-5 if dtype == "float32" else 0.02)
