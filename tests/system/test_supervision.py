"""A learner of two ranks whose parts are stopped one after the other, and which is then stopped itself."""

import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.system.listening import listeners
from tests.system.services import Service, Services, alive, command_line

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

SETTINGS = (
    *("--lag.max_lag", "4", "--training.max_steps", "100000", "--training.step_timeout_seconds", "15"),
    *("--checkpoint.interval_steps", "100000", "--workers", "2"),
)
"""No checkpoint is due but the one of a stop."""


@dataclass
class Running:
    """A run that goes on, and how often its trainer has been started."""

    services: Services
    learner: Service
    actor: Service


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Running]:
    with Services(tmp_path_factory.mktemp("supervised"), model) as services:
        learner, actor = services.start_learner(*SETTINGS), services.start_actor("--tokens-per-second", "50")
        services.until("step 3", lambda: len(services.metrics()) >= 3, 300)
        yield Running(services, learner, actor)


def test_nothing_listens_off_loopback(running: Running) -> None:
    listening = [place for service in (running.learner, running.actor) for place in listeners(service.process.pid)]
    assert {port for _, port in listening} >= {running.services.port, running.services.port + 1}
    assert [place for place in listening if not place[0].is_loopback] == []


def test_files_of_the_run_are_its_users_alone(running: Running) -> None:
    paths = [running.services.run, *running.services.run.rglob("*")]
    open_to_others = [path for path in paths if not path.is_symlink() and path.exists() and path.stat().st_mode & 0o077]
    assert open_to_others == []


def test_a_stopped_rank_is_named_and_the_trainer_starts_again(running: Running) -> None:
    services, learner = running.services, running.learner
    rank = next(each for each in ranks(learner) if each.environ()["RANK"] == "1")
    before = services.status()["trainer_restarts"]
    rank.suspend()
    services.until("a restart", lambda: services.status()["trainer_restarts"] == before + 1, 300)
    (line,) = [line for line in learner.log.splitlines() if "the trainer ended with" in line]
    assert re.search(r"rank 1 .*: no progress for \d+ s and the process is stopped", line)
    assert "rank 0" not in line
    services.until("ranks that train again", lambda: learner.log.count("trainer rank 0 of 2 is at step 0") == 2)
    assert not alive([rank])


def test_publisher_weight_server_and_engine_process_are_started_again_once_they_are_stopped(running: Running) -> None:
    services, learner = running.services, running.learner
    parts = {name: learner.child(module) for name, module in PARTS.items()}
    engine = running.actor.child("actor.engine_process")
    for part in (*parts.values(), engine):
        assert part is not None
        part.suspend()
    for name in parts:
        services.until(f"{name} again", lambda said=f"{name} ended with code -9": said in learner.log)
    for name, module in PARTS.items():
        services.until(f"{name} again", lambda module=module, old=parts[name]: learner.child(module) not in (None, old))
    said = "engine process 0 ended with code -9 and is started again: the engine process serves: no progress for"
    services.until("the engine process again", lambda: said in running.actor.log)
    counted = services.status()["groups_counted"]
    services.until("groups of the new one", lambda: services.status()["groups_counted"] > counted + 8, 300)


PARTS = {"the publisher": "learner.publisher", "the weight server": "learner.weights.server"}


def test_a_learner_that_is_stopped_writes_a_checkpoint_and_goes_on_without_repeating_a_step(running: Running) -> None:
    services = running.services
    reached = services.status()["step"]
    services.until("a step more", lambda: services.status()["step"] > reached)
    trained = len(services.metrics())
    running.learner.signal(signal.SIGTERM)
    services.ends_well(running.learner, 300)
    stopped_at = services.status()["step"]
    assert [path.name for path in (services.run / "checkpoints").glob("step-*")] == [f"step-{stopped_at:08d}"]
    assert "stopping: the trainer ends its batch and writes a checkpoint" in running.learner.log
    again = services.start_learner(*SETTINGS, "--training.max_steps", str(stopped_at + 3))
    services.start_actor()
    services.ends_well(again, 300)
    after = [line["step"] for line in services.metrics()[trained:]]
    assert len(after) == len(set(after))
    assert after[-3:] == [stopped_at + 1, stopped_at + 2, stopped_at + 3]


def test_ranks_that_import_end_with_a_launcher_that_is_killed(tmp_path: Path, model: Path) -> None:
    with Services(tmp_path, model) as services:
        learner = services.start_learner(*SETTINGS)
        started = services.until("ranks", lambda: found if len(found := ranks(learner)) == 2 else None, 300)
        learner.signal(signal.SIGKILL)
        services.until("the end of its ranks", lambda: not alive(started))


def ranks(learner: Service) -> list[psutil.Process]:
    children = psutil.Process(learner.process.pid).children(recursive=True)
    return [child for child in children if "learner.trainer.rank" in command_line(child)]
