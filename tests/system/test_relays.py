"""Weights by way of another machine's relay: launchers, engine processes and relays as users start them."""

import signal
from pathlib import Path

import psutil

from tests.system.services import Service, Services, alive

FROM_RELAY, INSTEAD = "bytes came from the relay at", "bytes come from the weight server"
RELAYING = ("--copy-weights", "--relay-listen", "tcp://127.0.0.1:0")


def start_actor(services: Services, name: str) -> Service:
    """A machine of its own, as far as weights go; once it is ready, so that the order of joining is known."""
    actor = services.start_actor(*RELAYING, "--weights-folder", str(services.folder / name))
    services.until(f"actor {name}", lambda: actor.log_file.with_name("engine-0.ready").exists())
    return actor


def engine_log(actor: Service) -> str:
    return actor.log_file.with_name("engine-0.log").read_text()


def relay_of(services: Services, actor: Service) -> psutil.Process:
    found: psutil.Process = services.until("a relay", lambda: actor.child("actor.weights.relay"))
    return found


def test_an_actor_fetches_from_anothers_relay_and_goes_on_when_it_is_killed_and_stopped(
    tmp_path: Path, model: Path
) -> None:
    with Services(tmp_path, model) as services:
        learner = services.start_learner("--training.max_steps", "400")
        first, second, third = [start_actor(services, name) for name in "abc"]
        # Two ask the weight server, the third the first one's relay.
        services.until("weights from a relay", lambda: FROM_RELAY in engine_log(third))
        assert FROM_RELAY not in engine_log(first) + engine_log(second)
        killed = relay_of(services, first)
        killed.send_signal(signal.SIGKILL)
        services.until("the learner to hear of it", lambda: learner.log.count("has lost the relay") == 1)
        services.until("the relay's new start", lambda: "relay ended with code -9 and is started again" in first.log)
        assert INSTEAD in engine_log(third)
        # They change places.
        services.until("weights from the third's relay", lambda: FROM_RELAY in engine_log(first))
        stopped = relay_of(services, third)
        stopped.send_signal(signal.SIGSTOP)
        services.until("the learner to hear of that", lambda: learner.log.count("has lost the relay") == 2)
        assert INSTEAD in engine_log(first)
        version = services.status()["weights_version"]
        services.until("two more versions", lambda: services.status()["weights_version"] > version + 1)
        learner.signal(signal.SIGTERM)
        services.ends_well(learner)
        for actor in (first, second, third):
            services.ends_well(actor)
        assert not alive([killed, stopped])
        assert not [path for name in "abc" for path in (services.folder / name).rglob("v0*")]
