"""What several system tests share: a tiny model, and one run that nothing disturbs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.services import Services
from tests.tiny_model import make_tiny_model

STEADY = ("--lag.max_lag", "0", "--training.max_steps", "12", "--checkpoint.interval_steps", "4")
"""With max_lag 0 a batch is what the prompt order says, so that runs can be compared."""


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_tiny_model(folder, seed=3)
    return folder


@pytest.fixture(scope="session")
def steady_run(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Services]:
    """A finished run of one rank and one actor."""
    with Services(tmp_path_factory.mktemp("steady"), model) as services:
        learner, actor = services.start_learner(*STEADY), services.start_actor()
        services.ends_well(learner, seconds=600)
        services.ends_well(actor, seconds=600)
        yield services
