"""Ledgers that are closed when a test ends."""

from collections.abc import Iterator

import pytest

from dcpo_async.config import RunConfig
from learner.intake import Intake
from tests.learner.small_run import OpenIntake, make_intake


@pytest.fixture
def open_intake() -> Iterator[OpenIntake]:
    opened: list[Intake] = []

    def open_one(config: RunConfig, num_prompts: int = 16) -> Intake:
        opened.append(make_intake(config, num_prompts))
        return opened[-1]

    yield open_one
    for intake in opened:
        intake.store.abandon()
