"""Weights by way of another machine's relay: launchers, engine processes and relays as users start them."""

import re
import signal
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from tests.system.services import Service, Services, alive

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]

INSTEAD = "bytes come from the weight server"
RELAYING = ("--copy-weights", "--relay-listen", "tcp://127.0.0.1:0")


def start_actor(services: Services, name: str) -> Service:
    """A machine of its own, as far as weights go."""
    return services.start_actor(*RELAYING, "--weights-folder", str(services.folder / name))


def engine_log(actor: Service) -> str:
    path = actor.log_file.with_name("engine-0.log")
    return path.read_text() if path.exists() else ""


def addresses(actor: Service) -> list[str]:
    """Of the relays that an actor has fetched from, one for each version."""
    return re.findall(r"bytes came from the relay at (\S+)", engine_log(actor))


def parent_of(actors: Sequence[Service]) -> Service | None:
    """The actor that another one has fetched from last; None while there is none."""
    for child in actors:
        if found := addresses(child):
            return next(actor for actor in actors if f"a relay hands on weights at {found[-1]}" in actor.log)
    return None


def relay_of(services: Services, actor: Service) -> psutil.Process:
    found: psutil.Process = services.until("a relay", lambda: actor.child("actor.weights.relay"))
    return found


def test_an_actor_fetches_from_anothers_relay_and_goes_on_when_it_is_killed_and_stopped(
    tmp_path: Path, model: Path
) -> None:
    with Services(tmp_path, model) as services:
        learner = services.start_learner("--training.max_steps", "4000", "--dismiss")
        actors = [start_actor(services, name) for name in "abc"]
        # Two ask the weight server, the third the first one's relay.
        parent = services.until("weights from a relay", lambda: parent_of(actors))
        killed = relay_of(services, parent)
        killed.send_signal(signal.SIGKILL)
        services.until("the relay's new start", lambda: "relay ended with code -9 and is started again" in parent.log)
        so_far = sum(len(addresses(actor)) for actor in actors)
        # From the one that is there again; or, where its start took too long, they have changed places.
        services.until("more from relays", lambda: sum(len(addresses(actor)) for actor in actors) > so_far + 2)
        stopped, lost = [relay_of(services, actor) for actor in actors], learner.log.count("has lost the relay")
        for relay in stopped:
            relay.send_signal(signal.SIGSTOP)
        services.until("the learner to hear of it", lambda: learner.log.count("has lost the relay") > lost)
        assert any(INSTEAD in engine_log(actor) for actor in actors)
        version = services.status()["weights_version"]
        services.until("two more versions", lambda: services.status()["weights_version"] > version + 1)
        learner.signal(signal.SIGTERM)
        services.ends_well(learner)
        for actor in actors:
            services.ends_well(actor)
        assert not alive([killed, *stopped])
        assert not [path for name in "abc" for path in (services.folder / name).rglob("v0*")]
