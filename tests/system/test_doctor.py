"""`dcpo doctor` beside a real run: nothing to say while all is well, and each part that is stopped is found."""

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dcpo_async.doctor.command import diagnose
from dcpo_async.doctor.round_trip import BEAT
from dcpo_async.errors import VersionMismatchError
from dcpo_async.protocol.messages import Envelope
from dcpo_async.transport.key_files import load_peer_keys, write_peer_keys, write_server_keys
from dcpo_async.transport.zmq_channel import DealerChannel, new_pair
from tests.system.services import Service, Services
from tests.tiny_model import make_tiny_model

pytestmark = [pytest.mark.system, pytest.mark.thorough, pytest.mark.timeout(600)]
SECONDS = 200.0


class Run:
    """A learner with keys and one actor, and what doctor says of it."""

    def __init__(self, services: Services, keys: Path) -> None:
        self.services, self.keys = services, keys
        write_server_keys(keys, new_pair())
        self.files = {
            role: write_peer_keys(keys, role, role, new_pair())  # type: ignore[arg-type]
            for role in ("actor", "evaluator", "rank")
        }
        self.learner = services.start_learner("--workers", "1", "--keys", str(keys), "--training.max_steps", "100000")
        self.actor = self.start_actor()
        services.until("steps", lambda: len(services.metrics()) >= 3, SECONDS)

    def start_actor(self) -> Service:
        return self.services.start_actor("--keys", str(self.files["actor"]), "--tokens-per-second", "100")

    def of_run(self) -> list[str]:
        return [finding.what for finding in diagnose(run_folder=self.services.run)]

    def of_way(self, keys: Path | None) -> list[str]:
        """What is wrong on the way to the learner, without what this machine is short of."""
        found, parts = diagnose(learner=self.services.address, keys=keys), ("learner at", "asks for", "the key of")
        return [finding.what for finding in found if any(part in finding.what for part in parts)]

    def is_found(self, words: str) -> None:
        """Wait until doctor says so."""
        self.services.until(words, lambda: any(words in line for line in self.of_run()), SECONDS)

    def is_well(self) -> None:
        """Wait until doctor says nothing, and training goes on."""
        steps = len(self.services.metrics())
        self.services.until("a step", lambda: len(self.services.metrics()) > steps, SECONDS)
        self.services.until("health", lambda: not self.of_run(), SECONDS)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("doctor")
    make_tiny_model(folder / "model", seed=0)
    (folder / "keys").mkdir(mode=0o700)
    with Services(folder, folder / "model") as services:
        yield Run(services, folder / "keys")


def test_a_run_that_is_well_and_whoever_may_speak_to_it(run: Run) -> None:
    assert run.of_run() == []
    assert run.of_way(run.files["actor"]) == []
    (line,) = run.of_way(run.files["evaluator"])
    assert "is an evaluator's" in line
    (line,) = run.of_way(run.files["rank"])
    assert "refuses this side (role)" in line
    (line,) = run.of_way(None)
    assert "asks for keys" in line


def test_a_key_that_is_not_admitted_is_found_from_both_sides(run: Run) -> None:
    (run.keys / "admitted" / "stranger.key").unlink(missing_ok=True)
    file = write_peer_keys(run.keys, "stranger", "actor", new_pair())
    (run.keys / "admitted" / "stranger.key").unlink()
    (line,) = run.of_way(file)
    assert "does not let in the key of actor stranger" in line
    assert any("is not admitted" in line for line in run.of_run() if "refused" in line)


def test_a_peer_of_another_protocol_is_found_from_both_sides(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def speak() -> None:
        monkeypatch.setitem(DealerChannel.__init__.__kwdefaults__, "version", 6)
        dealer = DealerChannel(run.services.address, 1 << 20, load_peer_keys(run.files["actor"]))
        try:
            await dealer.send(Envelope(BEAT))
            with pytest.raises(VersionMismatchError):
                await dealer.receive(SECONDS)
        finally:
            dealer.close()

    asyncio.run(speak())
    (line,) = run.of_way(run.files["actor"])
    assert "this side speaks 6" in line
    assert "upgrade" in line
    monkeypatch.undo()
    run.is_found("the peer speaks protocol version 6")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("learner.trainer.rank", "the trainer, process"),
        ("learner.weights.server", "the weight server does not serve"),
    ],
)
def test_a_part_that_is_stopped_is_named(run: Run, module: str, name: str) -> None:
    part = run.services.until(module, lambda: run.learner.child(module), SECONDS)
    part.suspend()
    try:
        run.is_found(name)
        run.is_found(f"process {part.pid}, is stopped")
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            part.resume()


def test_an_actor_that_is_gone_and_a_learner_that_is_silent_or_dead(run: Run) -> None:
    run.actor.process.kill()
    run.is_found("no actor is connected")
    learner = psutil.Process(run.learner.process.pid)
    learner.suspend()
    run.is_found("the learner, process")
    learner.resume()
    run.learner.signal(signal.SIGKILL)
    run.learner.process.wait()
    run.is_found("the learner is dead")
    ledger = run.services.run / "ledger" / "ledger.sqlite"
    assert not [line for line in run.of_run() if "damaged" in line]
    # The log would make up for what the file lacks.
    ledger.with_name("ledger.sqlite-wal").write_bytes(b"")
    ledger.write_bytes(ledger.read_bytes()[:-2000])
    run.is_found("damaged")
