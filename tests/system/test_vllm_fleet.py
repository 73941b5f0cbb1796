"""With the real vLLM: a second actor joins, the first is killed, the trainer is killed; prints what happened."""

import re
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.system.listening import listeners, listening_files
from tests.system.services import Service, Services, assert_counted_once

pytestmark = [pytest.mark.system, pytest.mark.timeout(500)]

WORDS = ("--lag.max_lag", "2", "--network.silence_seconds", "6", "--network.heartbeat_seconds", "1")
CHECKPOINTS = ("--checkpoint.interval_steps", "5")


def engine_of(actor: Service) -> psutil.Process:
    engine = actor.child("actor.engine_process")
    assert engine is not None
    return engine


def leases_of(services: Services, engine: psutil.Process) -> int:
    """Leases that the learner has given to an engine process so far, those that are answered included."""
    sessions = services.status().get("actors_connected", [])
    return sum(s["leases"] + s["groups_accepted"] for s in sessions if f"-{engine.pid}-" in s["session"])


def test_a_fleet_of_vllm_engines_joins_dies_and_loses_nothing(tmp_path: Path, model: Path) -> None:
    with Services(tmp_path, model) as services:
        learner = services.start_learner(*WORDS, *CHECKPOINTS, "--dismiss")
        first = services.start_actor("--engine", "vllm", "--kv-cache-gib", "0.25")
        services.until("the first steps", lambda: services.status().get("step", 0) >= 3, seconds=200)

        core = next(child for child in engine_of(first).children() if "EngineCore" in child.name())
        assert listeners(core.pid), "of gloo, which lets in whoever comes"
        assert [place for place in listeners(first.process.pid) if not place[0].is_loopback] == []
        files = listening_files(first.process.pid)
        assert files, "of vLLM, by which engine process and EngineCore talk"
        assert [path for path in files if path.stat().st_mode & 0o077] == []

        second = services.start_actor("--engine", "vllm", "--kv-cache-gib", "0.25")
        log_file = second.log_file.with_name("engine-0.log")
        services.until("vLLM", lambda: log_file.exists() and "is ready with" in log_file.read_text(), seconds=200)
        ready_at, newcomer = time.monotonic(), engine_of(second)
        services.until("its leases", lambda: leases_of(services, newcomer) > 0, seconds=10)
        print(f"the second actor had leases {time.monotonic() - ready_at:.1f} s after its engine was ready")

        released, veteran = services.status()["total_leases_released"], engine_of(first)
        veteran.suspend()
        time.sleep(1)
        first.signal(signal.SIGKILL)
        services.until("the return", lambda: services.status()["total_leases_released"] > released, seconds=30)
        num_released = services.status()["total_leases_released"] - released
        print(f"the first actor was killed: {num_released:.0f} leases came back")

        counted, step = services.status()["groups_counted"], services.status()["step"]
        trainer = learner.child("learner.trainer.rank")
        assert trainer is not None
        trainer.kill()
        services.until("a restart", lambda: services.status()["trainer_restarts"] == 1, seconds=30)
        services.until("groups meanwhile", lambda: services.status()["groups_counted"] > counted, seconds=60)
        services.until("progress", lambda: services.status()["step"] >= step + 10, seconds=120)
        resumed = re.findall(r"trainer rank 0 of 1 is at step (\d+)", learner.log)
        print(f"the trainer was killed after step {step} and went on from step {resumed[-1]}")
        assert int(resumed[-1]) > 0
        assert int(resumed[-1]) % 5 == 0

        files = listening_files(second.process.pid)
        assert files
        learner.signal(signal.SIGTERM)
        services.ends_well(learner)
        services.ends_well(second)
        assert [path for path in files if path.exists()] == []
        assert_counted_once(services)
        # A lease may come back twice: unlisted, given to the same silent session again, and lost with it.
        again = services.ledger("SELECT SUM(attempt - 1) FROM visits WHERE state = 'accepted'")[0][0]
        (counted,) = services.ledger("SELECT COUNT(*) FROM groups")[0]
        print(f"{counted} visits counted once, after {again} further attempts")
        assert again >= num_released
