"""Settings that are changed while a run goes on hold from their step on, at every start after it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcpo_async.config import RunConfig
from dcpo_async.errors import ConfigError
from dcpo_async.metrics.health import in_force, told_changes
from learner.ledger.ledger import Ledger
from learner.ledger.reader import Start
from learner.life.events import Event, events
from learner.life.history import history
from learner.life.live_settings import LiveSettings, set_at, settle
from tests.learner.small_run import make_config


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "ledger")
    yield ledger
    ledger.close()


def live_settings(ledger: Ledger, next_free_step: int = 7, updates: int = 1) -> tuple[LiveSettings, list[RunConfig]]:
    """The settings of a learner at work, and what its coordinator has been told to work by."""
    used: list[RunConfig] = []
    config = make_config(Path("run"), updates=updates)
    return LiveSettings(config, ledger, lambda: next_free_step, used.append), used


def test_a_change_holds_from_its_step_on_and_after_a_new_start(ledger: Ledger) -> None:
    live, _ = live_settings(ledger)
    assert live.change({"training.learning_rate": "5e-7"}) == "training.learning_rate 5e-07: from step 8 on"
    assert live.change({"training.learning_rate": "1e-7", "checkpoint.keep_every_steps": "none"}, at_step=9)
    for found in (live, live_settings(ledger)[0]):
        assert [found.of_step(step).get("training.learning_rate") for step in (6, 7, 8, 9)] == [None, 5e-7, 5e-7, 1e-7]
        assert found.of_step(9)["checkpoint.keep_every_steps"] is None
        assert found.marks(9) == {"set/training.learning_rate": 5e-7}
        assert found.marks(10) == {"set/training.learning_rate": 1e-7}


def test_what_the_coordinator_works_by_is_in_force_at_once_and_after_a_new_start(ledger: Ledger) -> None:
    live, used = live_settings(ledger)
    live.change({"network.silence_seconds": "40"})
    again, used_again = live_settings(ledger)
    assert [config.network.silence_seconds for config in (*used, *used_again)] == [40, 40]
    assert live.of_step(9) == again.of_step(9) == {}


@pytest.mark.parametrize(
    ("asked", "at_step", "said"),
    [
        ({"lag.max_lag": "3"}, None, "lag.max_lag decides which groups may train"),
        ({"seed": "3"}, None, "seed belongs to the run from its first start on"),
        ({"sampling.temperature": "0.9"}, None, "sampling.temperature shapes groups that are being made"),
        ({"training.gradient_clip": "2"}, None, "training.gradient_clip is read once, at a start: dcpo stop RUN"),
        ({"learning_rate": "3"}, None, "learning_rate: unknown setting; did you mean training.learning_rate"),
        ({"training.learning_rate": "-1"}, None, "training.learning_rate: Input should be greater than 0, found -1"),
        ({"training.learning_rate": "fast"}, None, "expected a number or none, found 'fast'"),
        ({"training.learning_rate": "true"}, None, "expected a number or none, found 'true'"),
        ({"training.learning_rate": "1e-7"}, 6, "the next batch that can have it begins after step 7"),
        ({"network.silence_seconds": "20"}, 9, "the coordinator takes them over at once"),
        ({"evaluation.every_steps": "20"}, None, "nothing is measured in this run"),
    ],
)
def test_what_cannot_change_is_refused_with_the_reason(
    ledger: Ledger, asked: dict[str, str], at_step: int | None, said: str
) -> None:
    live, used = live_settings(ledger)
    with pytest.raises(ConfigError, match=said):
        live.change(asked, at_step)
    assert (events(ledger), used) == ([], [])


def test_a_change_is_bound_to_the_beginning_of_a_batch(ledger: Ledger) -> None:
    live, _ = live_settings(ledger, next_free_step=8, updates=4)
    with pytest.raises(ConfigError, match="begins after step 8, and each is of 4 steps"):
        live.change({"training.learning_rate": "1e-7"}, at_step=9)
    assert live.change({"training.learning_rate": "1e-7"}, at_step=12)


def test_of_two_changes_the_later_step_holds_whichever_was_asked_first() -> None:
    happened = [Event(step, "", "set", {"settings": {"a": value}, "by": ""}) for step, value in ((9, 1.0), (5, 2.0))]
    assert [set_at(happened, step) for step in (4, 5, 8, 9)] == [{}, {"a": 2.0}, {"a": 2.0}, {"a": 1.0}]


def start(incarnation: int, rate: float) -> Start:
    settings = json.loads(make_config(Path("run"), training={"learning_rate": rate}).model_dump_json())
    return Start(incarnation, "2026-11-29T12:00:00+00:00", "0.1.0", settings, ())


@pytest.mark.parametrize(("given", "holds"), [(1e-6, 5e-7), (3e-6, 3e-6)])
def test_a_start_with_another_value_takes_the_place_of_what_was_set(ledger: Ledger, given: float, holds: float) -> None:
    live_settings(ledger, next_free_step=0)[0].change({"training.learning_rate": "5e-7"})
    config = make_config(Path("run"), training={"learning_rate": given})
    settle(ledger, config, [start(1, 1e-6), start(2, given)])
    assert set_at(events(ledger), 0) == {"training.learning_rate": holds}
    settle(ledger, config, [start(1, 1e-6), start(2, given), start(3, given)])
    assert set_at(events(ledger), 0) == {"training.learning_rate": holds}


def test_a_start_with_another_value_takes_the_place_of_what_was_set_for_a_later_step(ledger: Ledger) -> None:
    live, _ = live_settings(ledger, next_free_step=0)
    live.change({"training.learning_rate": "5e-7"}, at_step=1200)
    live.change({"checkpoint.keep_last": "7"}, at_step=1300)
    settle(ledger, make_config(Path("run"), training={"learning_rate": 3e-6}), [start(1, 1e-6), start(2, 3e-6)])
    assert set_at(events(ledger), 0) == {"training.learning_rate": 3e-6}
    assert set_at(events(ledger), 1300) == {"training.learning_rate": 3e-6, "checkpoint.keep_last": 7}


def test_history_tells_starts_changes_and_stops_in_their_order(ledger: Ledger) -> None:
    ledger.write_start(start(1, 1e-6))
    ledger.grant_version(0)
    live_settings(ledger)[0].change({"training.learning_rate": "5e-7"})
    found = [(entry.step, entry.what, entry.detail) for entry in history(ledger)]
    assert found == [
        (0, "start", "1 (0.1.0): the first"),
        (7, "set", "training.learning_rate 5e-07 from step 8 on, by dcpo set"),
    ]


def test_what_was_set_is_told_with_the_step_of_each_and_what_is_still_to_come(ledger: Ledger) -> None:
    live, _ = live_settings(ledger, next_free_step=7)
    live.change({"training.learning_rate": "5e-7"})
    live.change({"training.learning_rate": "4e-7", "checkpoint.keep_last": "3"})
    live.change({"training.learning_rate": "2e-7"}, at_step=20)
    status = {"step": 7, "settings_set": live.standing()}
    assert told_changes(status) == [
        "checkpoint.keep_last 3 from step 8 on",
        "training.learning_rate 4e-07 from step 8 on",
        "training.learning_rate 2e-07 from step 21 on",
    ]
    begun = {"seed": 1, "training": {"learning_rate": 1e-6, "max_steps": 9}}
    assert in_force(begun, status)["training"] == {"learning_rate": 4e-7, "max_steps": 9}
    assert in_force(begun, {**status, "step": 20})["training"]["learning_rate"] == 2e-7
    assert begun["training"]["learning_rate"] == 1e-6
