"""Two machines whose ranks train together, as launchers on the loopback with folders of their own."""

import signal
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from tests.system.conftest import STEADY
from tests.system.services import Service, Services, assert_counted_once, two_free_ports
from tests.system.test_keys import dcpo

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]


class Machines:
    """Node 0 is the learner of the services, reached at a host; node 1 has a folder beside it."""

    def __init__(self, services: Services, zero_stage: int, host: str = "127.0.0.1") -> None:
        self.services, keys = services, services.folder / "keys"
        dcpo("keygen", str(keys))
        dcpo("keygen", str(keys), "--rank", "second", "--actor", "worker")
        self.keys = keys
        where = ["--nodes", "2", "--rendezvous", f"{host}:{two_free_ports()}"]
        self.words = [*STEADY, "--training.zero_stage", str(zero_stage), *where]

    def start_first(self) -> Service:
        return self.services.start_learner(*self.words, "--keys", str(self.keys))

    def start_second(self, name: str = "second") -> Service:
        words = ["--node-rank", "1", "--keys", str(self.keys / "peers" / f"{name}.keys")]
        words += ["--folder", str(self.services.folder / "second")]
        return self.services.start("learner.launcher", str(self.services.config), *self.words, *words)

    def start_actor(self) -> Service:
        keys = str(self.keys / "peers" / "worker.keys")
        return self.services.start_actor("--keys", keys, "--tokens-per-second", "50")


def assert_trained_as(services: Services, steady: Services) -> None:
    """Groups and steps are those of one undisturbed rank, losses and weights nearly so."""
    assert_counted_once(services)
    query = "SELECT position, step FROM steps ORDER BY position"
    assert services.ledger(query) == steady.ledger(query)
    # A step that was trained again is told again.
    by_step = ({line["step"]: line["loss"] for line in run.metrics()} for run in (services, steady))
    losses, expected = (list(found.values()) for found in by_step)
    print(max(abs(a - b) for a, b in zip(losses, expected, strict=True)))
    assert losses == pytest.approx(expected, abs=1e-5)
    found, weights = (load_file(run.run / "export" / "model.safetensors") for run in (services, steady))
    print(max(float((found[name] - weights[name]).abs().max()) for name in weights))
    for name, tensor in weights.items():
        assert float((found[name] - tensor).abs().max()) < 1e-4, name


def test_a_machine_is_killed_and_comes_back_and_the_run_is_that_of_one_rank(
    tmp_path: Path, model: Path, steady_run: Services
) -> None:
    with Services(tmp_path, model) as services:
        machines = Machines(services, zero_stage=2)
        stranger = machines.start_second("worker")
        services.services.remove(stranger)
        first, actor = machines.start_first(), machines.start_actor()
        assert stranger.process.wait(600) == 2, stranger.log
        assert "worker.keys is for the role actor" in stranger.log
        services.until("a wait", lambda: "once all machines are there: node 1 has not come yet" in first.log, 600)
        second = machines.start_second()
        services.until("a checkpoint", lambda: "the checkpoint of step 4 stands" in first.log, 600)
        children = psutil.Process(second.process.pid).children(recursive=True)
        second.signal(signal.SIGKILL)
        assert children
        services.until("its being missed", lambda: "node 1 (second) was heard of" in first.log, 600)
        assert actor.code is None
        second = machines.start_second()
        for service in (first, second, actor):
            services.ends_well(service, seconds=1200)
        assert "the run is finished" in second.log
        assert (services.folder / "second" / "checkpoints" / "step-00000012" / "meta.json").exists()
        assert_trained_as(services, steady_run)


@pytest.mark.thorough
def test_slices_of_zero_3_on_two_machines_are_published_whole(
    tmp_path: Path, model: Path, steady_run: Services
) -> None:
    with Services(tmp_path, model) as services:
        machines = Machines(services, zero_stage=3)
        started = [machines.start_first(), machines.start_second(), machines.start_actor()]
        for service in started:
            services.ends_well(service, seconds=1200)
        assert_trained_as(services, steady_run)
