"""Kill -9 of the learner's parts at a moment that nobody has chosen well."""

import re
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from dcpo_async.metrics.health import health_of
from tests.system.conftest import STEADY
from tests.system.services import Service, Services, alive, assert_counted_once, fill, small_disk

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]

SLOW = ("--tokens-per-second", "50")
"""A step takes about a third of a second, so that a run can be met in its middle."""


@dataclass(frozen=True)
class KilledRun:
    """A finished run whose learner was killed once: the one that finished it, its only actor, and what stood then."""

    services: Services
    learner: Service
    actor: Service
    newest_checkpoint: int


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[KilledRun]:
    with Services(tmp_path_factory.mktemp("killed"), model) as services:
        learner, actor = services.start_learner(*STEADY), services.start_actor(*SLOW)
        services.until_step(6)
        parts = psutil.Process(learner.process.pid).children(recursive=True)
        learner.signal(signal.SIGKILL)
        assert len(parts) >= 3
        services.until("the end of trainer and weight server", lambda: not alive(parts), seconds=10)
        newest_checkpoint = newest_step(services)
        learner = services.start_learner(*STEADY)
        services.ends_well(learner)
        services.ends_well(actor)
        yield KilledRun(services, learner, actor, newest_checkpoint)


def test_the_same_command_goes_on_from_the_newest_checkpoint(killed: KilledRun) -> None:
    assert trainer_starts(killed.learner) == [0, killed.newest_checkpoint]
    assert {line["step"] for line in killed.services.metrics()} == {*range(1, 13)}


def test_the_actor_rejoins_a_learner_that_was_started_again(killed: KilledRun) -> None:
    joined = re.findall(r"actor (\S+) joined from", killed.learner.log)
    assert len(joined) >= 2
    assert len(set(joined)) == 1
    assert len(re.findall(r"engine process \d+ started", killed.actor.log)) == 1


def test_no_visit_is_lost_or_counted_twice(killed: KilledRun) -> None:
    assert_counted_once(killed.services)
    assert killed.services.ledger("SELECT COUNT(*), COUNT(DISTINCT step) FROM steps") == [(48, 12)]


def test_no_weights_version_is_used_twice(killed: KilledRun) -> None:
    query = "SELECT weights_version, step, incarnation FROM versions ORDER BY weights_version"
    versions = killed.services.ledger(query)
    before = [version for version, _, incarnation in versions if incarnation == 1]
    after = [version for version, _, incarnation in versions if incarnation == 2]
    assert max(before) < min(after)
    assert [step for _, step, incarnation in versions if incarnation == 2] == [*range(killed.newest_checkpoint, 13)]
    engine_log = next(killed.services.folder.glob("actor-*/engine-0.log")).read_text()
    adopted = [int(version) for version in re.findall(r"adopted weights version (\d+)", engine_log)]
    assert adopted == sorted(set(adopted))
    assert adopted[-1] in after


def test_a_killed_and_resumed_run_ends_bit_identical_to_one_that_nothing_disturbed(
    killed: KilledRun, steady_run: Services
) -> None:
    assert killed.services.exported_weights() == steady_run.exported_weights()
    for query in (
        "SELECT * FROM prompt_stats",
        "SELECT * FROM steps",
        "SELECT position, rewards, advantages FROM groups ORDER BY position",
    ):
        assert killed.services.ledger(query) == steady_run.ledger(query)


def test_a_publisher_that_is_killed_again_and_again_costs_no_version_and_no_bit(
    tmp_path: Path, model: Path, steady_run: Services
) -> None:
    with Services(tmp_path, model) as services:
        learner, actor = services.start_learner(*STEADY), services.start_actor(*SLOW)
        ended: list[int] = []
        for step in (2, 5, 8):
            services.until_step(step)
            publisher = services.until("a publisher", lambda: learner.child("learner.publisher"))
            publisher.kill()
            ended.append(publisher.pid)
        services.ends_well(learner)
        services.ends_well(actor)
        assert len(set(ended)) == 3
        assert learner.log.count("the publisher ended with code -9 and is started again") == 3
        assert services.exported_weights() == steady_run.exported_weights()
        steps = [step for (step,) in services.ledger("SELECT DISTINCT step FROM versions ORDER BY step")]
        assert steps == [*range(13)]
        assert not list((services.run / "weights").glob(".*"))


def test_actors_keep_generating_while_a_killed_trainer_comes_back(tmp_path: Path, model: Path) -> None:
    with Services(tmp_path, model) as services:
        words = ("--lag.max_lag", "4", "--training.max_steps", "24", "--checkpoint.interval_steps", "3")
        learner, actor = services.start_learner(*words), services.start_actor(*SLOW)
        services.until_step(4)
        # An engine that stands still lets the trainer use up all groups: what is counted later was made later.
        engine = actor.child("actor.engine_process")
        rank = learner.child("learner.trainer.rank")
        assert engine is not None
        assert rank is not None
        engine.suspend()
        stands = until_standstill(services)
        newest_checkpoint = newest_step(services)
        rank.kill()
        engine.resume()
        services.until("a restart", lambda: services.status()["trainer_restarts"] == 1)
        counted = services.until("new groups", lambda: more_groups(services, stands["groups_counted"] + 4))
        assert counted["step"] == stands["step"]
        services.ends_well(learner)
        services.ends_well(actor)
        assert trainer_starts(learner) == [0, newest_checkpoint]
        assert {line["step"] for line in services.metrics()} == {*range(1, 25)}
        assert services.ledger("SELECT COUNT(*), COUNT(DISTINCT step) FROM steps") == [(96, 24)]
        assert_counted_once(services)


def until_standstill(services: Services) -> dict[str, Any]:
    """The status, once it has stayed the same for longer than the learner needs to write it anew."""
    seen: list[tuple[tuple[int, int], float]] = []

    def unchanged() -> dict[str, Any] | None:
        status, now = services.status(), time.monotonic()
        state = status["step"], status["groups_counted"]
        if not seen or seen[-1][0] != state:
            seen.append((state, now))
        return status if now - seen[-1][1] > 2.5 else None

    found: dict[str, Any] = services.until("a trainer without work", unchanged)
    return found


def more_groups(services: Services, count: int) -> dict[str, Any] | None:
    status = services.status()
    return status if status["groups_counted"] >= count else None


def newest_step(services: Services) -> int:
    """Step of the newest checkpoint that stands."""
    return max(int(path.name.removeprefix("step-")) for path in (services.run / "checkpoints").glob("step-*"))


def trainer_starts(learner: Service) -> list[int]:
    """The steps from which trainers have started, by the log of all learners of the run."""
    found = re.findall(r"trainer rank 0 of 1 is at step (\d+)", learner.log)
    return [int(step) for step in found]


def test_a_damaged_checkpoint_ends_the_learner_with_its_own_words(tmp_path: Path, steady_run: Services) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(steady_run.folder, folder)
    damaged = next((folder / "run" / "checkpoints" / "step-00000012").rglob("*model_states.pt"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")
    words = [str(steady_run.config), *STEADY, "--training.max_steps", "16", "--folder", str(folder / "run")]
    log_file = tmp_path / "learner.log"
    learner = Service(log_file, "learner.launcher", *words)
    assert learner.process.wait(100) == 2
    (line,) = [line for line in learner.log.splitlines() if line.startswith("dcpo-learner: ")]
    assert "step-00000012 is damaged" in line
    assert "move it away to resume from step 8" in line


def test_a_full_disk_holds_a_run_up_until_there_is_room(tmp_path: Path, model: Path) -> None:
    with Services(tmp_path, model) as services, small_disk(services) as is_small:
        if not is_small:
            pytest.skip("a tmpfs cannot be mounted here")
        silence = ("--network.silence_seconds", "6", "--network.heartbeat_seconds", "1")
        learner, actor = services.start_learner(*STEADY, *silence), services.start_actor(*SLOW)
        services.until_step(3)
        filling = services.run / "filling"
        fill(filling)
        services.until("the wait", lambda: "the run waits, and goes on by itself" in learner.log)
        # What came in before is in the status a second later.
        time.sleep(2)
        step = services.status()["step"]
        # Longer than the silence that counts as an actor's death.
        time.sleep(8)
        status = services.status()
        assert status["step"] == step
        assert "disk is nearly full" in actor.log_file.with_name("engine-0.log").read_text()
        health = health_of(status, time.time(), True)
        assert "the run waits for its disk" in health.why
        filling.unlink()
        services.ends_well(learner)
        services.ends_well(actor)
        assert "s for room on its disk" in learner.log
        assert " lost: " not in learner.log
        assert_counted_once(services)
        assert [line["step"] for line in services.metrics()] == [*range(1, 13)]
