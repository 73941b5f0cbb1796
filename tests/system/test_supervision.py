"""A running learner's processes: what they listen on, what is noticed of them, and how a stop ends them."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.system.services import Service, Services, alive, command_line

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]

TWO_RANKS = (
    *("--workers", "2", "--training.zero_stage", "2", "--training.step_timeout_seconds", "15"),
    *("--checkpoint.interval_steps", "1000", "--training.max_steps", "100000"),
)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[tuple[Services, Service, Service]]:
    """A learner of two ranks and an actor, which have trained steps."""
    with Services(tmp_path_factory.mktemp("running"), model) as services:
        learner, actor = services.start_learner(*TWO_RANKS), services.start_actor("--tokens-per-second", "50")
        services.until("step 2", lambda: len(services.metrics()) >= 2, seconds=300)
        yield services, learner, actor


def tree(*services: Service) -> list[psutil.Process]:
    roots = [psutil.Process(service.process.pid) for service in services]
    return [*roots, *(child for root in roots for child in root.children(recursive=True))]


def ranks_of(learner: Service) -> list[psutil.Process]:
    found = [process for process in tree(learner) if "learner.trainer.rank" in command_line(process)]
    return sorted(found, key=lambda process: process.environ()["RANK"])


def listening(processes: list[psutil.Process]) -> set[tuple[str, int]]:
    """Every TCP address at which one of the processes listens."""
    connections = [connection for process in processes for connection in process.net_connections("tcp")]
    return {connection.laddr for connection in connections if connection.status == psutil.CONN_LISTEN}


def test_nothing_listens_off_loopback(running: tuple[Services, Service, Service]) -> None:
    services, learner, actor = running
    found = listening(tree(learner, actor))
    assert {services.port, services.port + 1} <= {port for _, port in found}
    assert {address for address, _ in found} == {"127.0.0.1"}


def test_other_users_can_read_nothing_of_a_run(running: tuple[Services, Service, Service]) -> None:
    services, _, _ = running
    made = [services.run, *services.run.rglob("*")]
    assert len(made) > 10
    assert not [path for path in made if path.exists() and path.lstat().st_mode & 0o077 and not path.is_symlink()]


def test_a_weight_server_that_is_stopped_is_started_again(running: tuple[Services, Service, Service]) -> None:
    services, learner, _ = running
    server = learner.child("learner.weights.server")
    assert server is not None
    server.suspend()
    services.until("its end", lambda: "the weight server answers requests: no progress for" in learner.log)
    services.until("another one", lambda: learner.child("learner.weights.server") not in (None, server))


def test_a_rank_that_is_stopped_in_a_step_is_named_and_all_ranks_start_again(
    running: tuple[Services, Service, Service],
) -> None:
    services, learner, _ = running
    ranks_of(learner)[1].suspend()
    services.until("its end", lambda: "no progress for" in learner.log.partition("the trainer ended")[2])
    words = learner.log.partition("the trainer ended")[2].splitlines()[0]
    assert "rank 1" in words
    assert "the process is stopped" in words
    assert "rank 0" not in words
    services.until("a restart", lambda: learner.log.count("trainer rank 1 of 2 is at step") == 2)


def test_a_learner_that_is_stopped_leaves_a_checkpoint_of_its_last_step(
    running: tuple[Services, Service, Service],
) -> None:
    services, learner, _ = running
    before = len(services.metrics())
    services.until("more steps", lambda: len(services.metrics()) >= before + 3)
    left = tree(learner)
    learner.signal(signal.SIGTERM)
    services.ends_well(learner)
    services.until("the end of all its processes", lambda: not alive(left), seconds=20)
    trained = int(services.metrics()[-1]["step"])
    assert [path.name for path in (services.run / "checkpoints").iterdir()] == [f"step-{trained:08d}"]
    again = services.start_learner(*TWO_RANKS)
    services.until("its ranks", lambda: f"trainer rank 1 of 2 is at step {trained}" in again.log)
    again.signal(signal.SIGTERM)
    services.ends_well(again)


@pytest.mark.parametrize("seconds", [0.2, *(pytest.param(late, marks=pytest.mark.thorough) for late in (4.0, 8.0))])
def test_a_launcher_that_is_killed_at_its_start_leaves_no_process(tmp_path: Path, model: Path, seconds: float) -> None:
    with Services(tmp_path, model) as services:
        learner = services.start_learner("--workers", "2")
        services.until("its parts", lambda: len(ranks_of(learner)) == 2)
        time.sleep(seconds)
        left = tree(learner)
        learner.signal(signal.SIGKILL)
        learner.process.wait()
        services.until("the end of all", lambda: not alive(left), seconds=20)
        assert len(left) >= 5
