"""The life of a run with real services: set while it goes on, killed, backed up under load, stopped, forked."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.chaos.recount import recount
from learner.ledger.copy import open_copy
from learner.life.events import events
from tests.system.services import Services

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]

WORDS = ("--lag.max_lag", "0", "--checkpoint.interval_steps", "4", "--checkpoint.keep_every_steps", "4")
RATE = 3e-4
"""None of those that the first steps, which warm up, have."""


def dcpo(*words: object) -> tuple[int, str]:
    """Exit code and all that a command says."""
    argv = [sys.executable, "-m", "dcpo_async.commands.cli", *map(str, words)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def reach(services: Services, num_lines: int) -> None:
    """Wait for so many lines of metrics, those of steps that were trained again among them."""
    services.until(f"{num_lines} lines", lambda: len(services.metrics()) >= num_lines, seconds=600)


def rates(services: Services) -> dict[int, set[float]]:
    """Every learning rate that a step was ever trained with."""
    found: dict[int, set[float]] = {}
    for line in services.metrics():
        found.setdefault(int(line["step"]), set()).add(line["learning_rate"])
    return found


def leases(services: Services) -> dict[str, int]:
    """What each actor that has a lease holds."""
    actors = services.status().get("actors_connected", [])
    return {actor["session"]: actor["leases"] for actor in actors if actor["leases"]}


def test_a_run_is_changed_killed_backed_up_stopped_and_forked(tmp_path: Path, model: Path) -> None:
    with Services(tmp_path, model) as services:
        run = services.run
        learner = services.start_learner(*WORDS)
        services.start_actor("--tokens-per-second", "50")
        reach(services, 5)

        # A setting is changed, with its step; what may not change says why.
        code, said = dcpo("set", run, f"training.learning_rate={RATE}")
        assert code == 0, said
        with open_copy(run / "ledger") as reader:
            (event,) = events(reader)
        assert event.content["settings"] == {"training.learning_rate": RATE}
        since = event.step
        assert f"from step {since + 1} on" in said
        code, said = dcpo("set", run, "lag.max_lag=3")
        assert (code, "decides which groups may train" in said) == (2, True)
        reach(services, since + 1)

        # Killed before the next checkpoint: the steps since the last are trained again, each as it was.
        learner.signal(signal.SIGKILL)
        learner.process.wait()
        code, said = dcpo("set", run, "training.learning_rate=1")
        assert (code, "no learner is at work" in said) == (2, True)
        lines = len(services.metrics())
        learner = services.start_learner(*WORDS)
        reach(services, lines + 2)

        # A backup while it trains restores to a ledger that passes a recount by a reader of its own.
        code, said = dcpo("backup", run, "--to", tmp_path / "backup")
        assert code == 0, said
        code, said = dcpo("restore", tmp_path / "backup", "--to", tmp_path / "restored")
        assert code == 0, said
        ledger = tmp_path / "restored" / "ledger" / "ledger.sqlite"
        assert recount(ledger, groups_per_step=4, max_lag=0, checkpoint_interval=4).faults == ()

        # Stopped, its actor waits, and goes on with the next learner.
        code, said = dcpo("stop", run, "--keep-actors")
        assert code == 0, said + services.log_ends()
        assert "stopped after step" in said
        services.ends_well(learner)
        with open_copy(run / "ledger") as reader:
            end = events(reader)[-1]
        assert (end.kind, end.content) == ("stopped", {"unsaved": 0})
        last = end.step + 2
        learner = services.start_learner(*WORDS, "--training.max_steps", str(last))
        services.ends_well(learner, seconds=600)
        found = rates(services)
        assert {step for step, of_step in found.items() if of_step == {RATE}} == {*range(since + 1, last + 1)}
        assert {step for step, of_step in found.items() if 1e-3 in of_step} == {*range(2, since + 1)}
        assert "set/training.learning_rate" in services.metrics()[-1]
        code, said = dcpo("history", run)
        assert code == 0
        assert [word for word in ("start", "set", "stopped") if word not in said] == []

        # A fork from before the change trains on as the original had begun; here with the change at the same step.
        code, said = dcpo("fork", run, tmp_path / "fork", "--step", "4")
        assert code == 0, said
        whole, services.run = run, tmp_path / "fork"
        learner = services.start_learner(*WORDS, "--training.max_steps", str(last), "--folder", str(services.run))
        services.until("the fork's learner", lambda: services.status().get("step") == 4, seconds=600)
        code, said = dcpo("set", services.run, f"training.learning_rate={RATE}", "--at-step", since)
        assert code == 0, said

        # An actor that is drained answers what it holds, says by whom it was asked, and leaves; another goes on.
        drained = services.start_actor("--tokens-per-second", "50")
        services.until("the fork's actor", lambda: leases(services) != {}, seconds=600)
        (name,) = leases(services)
        code, said = dcpo("drain", services.run, name)
        assert (code, f"{name} has answered all that it held, and has left" in said) == (0, True), said
        services.ends_well(drained)
        assert any("drained (dcpo drain, asked by " in path.read_text() for path in tmp_path.rglob("*.log"))
        services.start_actor()
        services.ends_well(learner, seconds=600)
        assert services.exported_weights() == (whole / "export" / "model.safetensors").read_bytes()
        queries = (
            "SELECT * FROM prompt_stats",
            "SELECT * FROM steps",
            "SELECT position, rewards, advantages FROM groups",
        )
        forked = [services.ledger(query) for query in queries]
        services.run = whole
        assert forked == [services.ledger(query) for query in queries]
