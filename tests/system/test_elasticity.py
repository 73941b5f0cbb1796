"""Actors come, die and leave while a run goes on: one learner for all tests, which each leave it running."""

import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.system.services import Service, Services, alive, assert_counted_once

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]

WORDS = (
    *("--lag.max_lag", "2", "--network.silence_seconds", "3", "--network.heartbeat_seconds", "1"),
    *("--actor.engine_stall_seconds", "4"),
)
SLOW = ("--tokens-per-second", "50")


@dataclass
class Run:
    """A run without an end, with the actor that was there first."""

    services: Services
    learner: Service
    actor: Service

    def session(self, engine: int) -> dict[str, Any] | None:
        """What the learner says of an engine process; None while it does not know it."""
        sessions = self.services.status()["actors_connected"]
        return next((session for session in sessions if f"-{engine}-" in session["session"]), None)

    def is_at_work(self, engine: int) -> bool:
        session = self.session(engine)
        return session is not None and session["leases"] + session["groups_accepted"] > 0

    def num_released(self) -> float:
        return float(self.services.status()["total_leases_released"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Run]:
    with Services(tmp_path_factory.mktemp("elastic"), model) as services:
        run = Run(services, services.start_learner(*WORDS, "--dismiss"), services.start_actor(*SLOW))
        services.until_step(2)
        yield run


def test_an_actor_that_knows_nothing_but_the_address_has_leases_within_ten_seconds_and_leaves_without_a_loss(
    run: Run,
) -> None:
    newcomer = run.services.start_actor(*SLOW)
    log_file = newcomer.log_file.with_name("engine-0.log")
    run.services.until("the engine", lambda: log_file.exists() and "is ready with" in log_file.read_text())
    engine = engine_pid(newcomer)
    run.services.until("its leases", lambda: run.is_at_work(engine), seconds=10)

    released = run.num_released()
    newcomer.signal(signal.SIGTERM)
    run.services.ends_well(newcomer, seconds=30)
    run.services.until("its bye", lambda: run.session(engine) is None, seconds=10)
    (left,) = [line for line in run.learner.log.splitlines() if re.search(rf"-{engine}-\w+ left", line)]
    assert left.endswith("0 leases go out again")
    assert run.num_released() == released


def test_the_leases_of_a_killed_engine_go_out_again_and_its_launcher_starts_it_again(run: Run) -> None:
    engine = run.actor.child("actor.engine_process")
    assert engine is not None
    family, released = [engine, *engine.children(recursive=True)], run.num_released()
    # An engine that stands still keeps its leases, so that some are lost with it for certain.
    engine.suspend()
    run.services.until("leases", lambda: (run.session(engine.pid) or {"leases": 0})["leases"] > 0)
    engine.kill()
    run.services.until("the end of its grading workers too", lambda: not alive(family), seconds=10)
    run.services.until("the return of its leases", lambda: run.num_released() > released, seconds=20)
    run.services.until("a new engine", lambda: engine_pid(run.actor) not in (0, engine.pid))
    again = engine_pid(run.actor)
    run.services.until("its leases", lambda: run.is_at_work(again))


def test_an_engine_that_hangs_is_ended_and_started_anew_and_its_leases_are_answered(run: Run) -> None:
    newcomer = run.services.start_actor(*SLOW, "--hang-after-groups", "3")
    log_file = newcomer.log_file.with_name("engine-0.log")
    run.services.until("its end", lambda: log_file.exists() and "scripted hangs: no step for" in log_file.read_text())
    run.services.until("a new start", lambda: newcomer.log.count("started as process") >= 2, seconds=30)
    newcomer.signal(signal.SIGTERM)
    run.services.ends_well(newcomer, seconds=60)
    steps = len(run.services.metrics())
    run.services.until_step(steps + 3)


def test_every_visit_is_counted_once_whoever_came_and_went(run: Run) -> None:
    run.services.until_step(len(run.services.metrics()) + 3)
    run.learner.signal(signal.SIGTERM)
    run.services.ends_well(run.learner)
    run.services.ends_well(run.actor)
    assert_counted_once(run.services)
    open_positions = run.services.ledger("SELECT position FROM visits WHERE state = 'leased'")
    num_visits, last = run.services.ledger("SELECT COUNT(*), MAX(position) FROM visits")[0]
    assert num_visits == last + 1
    assert len(open_positions) < 12
    # What was leased before the engine died has long been counted, under a newer attempt.
    assert all(position > last - 24 for (position,) in open_positions)


def engine_pid(actor: Service) -> int:
    """The engine process of a launcher; 0 while there is none."""
    engine = actor.child("actor.engine_process")
    return engine.pid if engine is not None else 0
