"""Where a relay listens, and what is refused."""

import argparse
from pathlib import Path

import pytest

from actor.weights_options import add_relay_arguments, add_weights_arguments, checked_relay, weights_words
from dcpo_async.errors import ConfigError


def options(*words: str, learner: str = "tcp://127.0.0.1:5557", insecure: bool = False) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_weights_arguments(parser)
    add_relay_arguments(parser)
    given = parser.parse_args(words)
    given.learner, given.keys, given.insecure = learner, None, insecure
    return given


@pytest.mark.parametrize(
    "learner", ["tcp://127.0.0.1:5557", "tcp://localhost:5557", "tcp://[::1]:5557", "ipc:///tmp/x"]
)
def test_beside_the_learner_no_relay_runs_unless_it_is_asked_for(learner: str) -> None:
    assert checked_relay(options(learner=learner)) == ("", "")


def test_any_free_port_is_taken_once_and_for_all() -> None:
    listen, found = checked_relay(options("--relay-listen", "tcp://127.0.0.1:0"))
    assert listen == found
    assert int(listen.removeprefix("tcp://127.0.0.1:")) > 0


def test_a_relay_on_all_addresses_is_found_at_the_one_that_reaches_the_learner() -> None:
    given = options("--relay-listen", "tcp://0.0.0.0:5999", insecure=True)
    assert checked_relay(given) == ("tcp://0.0.0.0:5999", "tcp://127.0.0.1:5999")
    assert checked_relay(options("--relay-listen", "tcp://[::1]:5999")) == ("tcp://[::1]:5999", "tcp://[::1]:5999")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--relay-listen", "tcp://10.0.0.7:5560"], "no keys are given"),
        (["--relay-listen", "nonsense"], "is no address"),
        (["--relay-listen", "ipc:///tmp/relay"], "reached by tcp"),
        (["--weights-from", "tcp://10.0.0.7"], "is no address"),
        (["--relay-mbps", "0"], "must be above 0"),
        (["--relay-mbps", "nan"], "must be above 0"),
        (["--no-relay", "--relay-mbps", "3"], "runs no relay"),
        (["--no-relay", "--relay-listen", "tcp://127.0.0.1:0"], "runs no relay"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        checked_relay(options(*words))


def test_what_engine_processes_are_told_is_what_the_launcher_was() -> None:
    words = ["--weights-folder", "/big", "--copy-weights", "--weights-from", "tcp://127.0.0.1:9"]
    assert weights_words(options(*words)) == words
    assert weights_words(options()) == []
    assert options(*words).weights_folder == Path("/big")
