"""One learner as those see it who run it for weeks: its folder, its HTTP address, and its end."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.monitoring.test_server import samples
from tests.system.services import Services, is_free, two_free_ports

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[tuple[Services, str]]:
    """A learner that trains without end, with an actor, and where it answers over HTTP."""
    with Services(tmp_path_factory.mktemp("live"), model) as services:
        port = two_free_ports()
        services.start_learner("--http", f"127.0.0.1:{port}")
        services.start_actor()
        services.until("three steps", lambda: len(services.metrics()) >= 3, seconds=900)
        yield services, f"127.0.0.1:{port}"


def status_of(where: str | Path) -> tuple[int, dict[str, Any]]:
    """Exit code and output of `dcpo status --json`."""
    words = ["-m", "dcpo_async.commands.cli", "status", str(where), "--json"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def answer(address: str) -> str:
    with urlopen(f"http://{address}", timeout=30) as found:
        return str(found.read().decode())


def test_a_run_that_trains_says_so_in_its_folder_and_over_http(live: tuple[Services, str]) -> None:
    services, address = live
    # The status is written once a second, and read as often by who answers over HTTP.
    for where in (services.run, address):
        status = services.until("a run that trains", lambda where=where: trains(where))
        assert status["seconds_per_step"] > 0
    for path in ("healthz", "readyz"):
        services.until(path, lambda path=path: answer(f"{address}/{path}").startswith("training"))


def trains(where: str | Path) -> dict[str, Any] | None:
    code, status = status_of(where)
    return status if (code, status["health"]["state"]) == (0, "training") else None


def test_metrics_over_http_are_those_of_the_run(live: tuple[Services, str]) -> None:
    services, address = live
    step = services.status()["step"]
    services.until("a step", lambda: samples(answer(f"{address}/metrics"))["dcpo_step", ""] > step)
    found = samples(answer(f"{address}/metrics"))
    assert found["dcpo_up", ""] == 1
    assert found["dcpo_actors", ""] == 1
    assert found["dcpo_groups_total", "accepted"] >= 4 * found["dcpo_step", ""]
    assert found["dcpo_step_duration_seconds_count", ""] > 0
    assert [key for key in found if key[0] == "dcpo_actor_leases"]


def doctored(*words: str) -> tuple[int, list[dict[str, str]]]:
    """Exit code and findings of `dcpo doctor --json`."""
    argv = [sys.executable, "-m", "dcpo_async.commands.cli", "doctor", "--json", *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_the_doctor_finds_nothing_in_a_healthy_run_and_the_way_to_its_learner_open(live: tuple[Services, str]) -> None:
    services, _ = live
    assert doctored("--run", str(services.run)) == (0, [])
    _, findings = doctored("--learner", services.address, str(services.config))
    # The learner that runs has the ports that another would need.
    assert [finding for finding in findings if "for the coordinator, cannot be had" in finding["what"]]
    assert not [finding for finding in findings if "answers" in finding["what"] or "learner at" in finding["what"]]


@pytest.mark.thorough
def test_the_doctor_says_when_an_actor_is_stopped(live: tuple[Services, str]) -> None:
    services, _ = live
    engine = services.services[1].child("actor.engine_process")
    assert engine is not None
    engine.suspend()
    try:
        services.until("a finding", lambda: "was not heard of" in str(doctored("--run", str(services.run))[1]))
    finally:
        engine.resume()
    services.until("the actor", lambda: doctored("--run", str(services.run)) == (0, []), seconds=300)


def test_a_learner_that_is_killed_leaves_a_run_that_is_dead(live: tuple[Services, str]) -> None:
    services, address = live
    services.services[0].signal(signal.SIGKILL)
    services.services[0].process.wait()
    code, status = status_of(services.run)
    assert (code, status["health"]["state"]) == (3, "dead")
    assert "last sign of life" in status["health"]["why"]
    assert not status["is_over"]
    code, findings = doctored("--run", str(services.run))
    assert (code, findings[0]["severity"]) == (1, "error")
    assert findings[0]["what"].startswith("the learner is dead")
    # What answered for it has ended with it.
    services.until("the end of the monitor", lambda: is_free(int(address.rpartition(":")[2])))
    with pytest.raises(URLError):
        answer(f"{address}/healthz")
