"""Being told: which changes of a run become events, how often, and how they reach a command and a webhook."""

import json
import stat
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from dcpo_async.metrics.health import Health, State
from dcpo_async.monitoring import alerts
from dcpo_async.monitoring.alerts import Changes, Event, Teller

STATUS: dict[str, Any] = {"run_id": "r", "step": 5, "trainer_restarts": 0}
EVENT = Event("dead", "r", "its process is gone", 5, 1000.0)


def told(changes: Changes, state: State, now: float, **changed: Any) -> list[str]:
    return [event.kind for event in changes.seen(STATUS | changed, Health(state, "why", 0.0), now)]


def test_a_state_is_told_once_and_only_when_it_has_lasted() -> None:
    changes = Changes()
    assert told(changes, "training", 0) == []
    assert told(changes, "dead", 100) == []
    assert told(changes, "training", 130) == []
    assert told(changes, "dead", 200) == []
    assert told(changes, "dead", 259) == []
    assert told(changes, "dead", 260) == ["dead"]
    assert told(changes, "dead", 5000) == []
    assert told(changes, "training", 5001) == []
    assert told(changes, "training", 5061) == ["recovered"]


@pytest.mark.parametrize("state", ["finished", "stopped"])
def test_an_end_in_order_is_told_at_once(state: State) -> None:
    changes = Changes()
    told(changes, "training", 0)
    assert told(changes, state, 1) == [state]
    assert told(changes, state, 2) == []


def test_a_second_death_within_the_pause_is_told_after_it() -> None:
    changes = Changes()
    for now, kinds in ((0, []), (60, ["dead"])):
        assert told(changes, "dead", now) == kinds
    for now, kinds in ((100, []), (160, ["recovered"])):
        assert told(changes, "training", now) == kinds
    for now, kinds in ((200, []), (300, []), (659, []), (660, ["dead"]), (700, [])):
        assert told(changes, "dead", now) == kinds


def test_what_happens_again_and_again_is_told_more_and_more_seldom() -> None:
    changes = Changes()
    told(changes, "training", 0)
    times = []
    for minute in range(1, 300):
        if told(changes, "training", 60.0 * minute, trainer_restarts=minute):
            times.append(minute)
    assert times == [1, 11, 31, 71, 151]


def test_counts_of_a_new_learner_begin_anew_and_the_first_look_tells_nothing_of_the_past() -> None:
    changes = Changes()
    assert told(changes, "training", 0, trainer_restarts=3) == []
    assert told(changes, "training", 1, trainer_restarts=0) == []
    assert told(changes, "training", 2, trainer_restarts=1) == ["trainer restarted"]
    assert told(changes, "training", 3, last_step={"checkpoint_failures": 1.0}) == ["checkpoint failed"]
    assert changes.seen({}, Health("silent", "", None), 4) == []


def test_a_command_gets_kind_and_reason_as_words_and_the_event_as_json(tmp_path: Path) -> None:
    script = tmp_path / "tell me"
    script.write_text(f'#!/bin/sh\nprintf "%s|%s|%s" "$1" "$2" "$3" > "{tmp_path}/words"\ncat > "{tmp_path}/event"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    Teller(lambda: ({}, Health("dead", "", None)), f"'{script}' --loud", None).tell(EVENT)
    assert (tmp_path / "words").read_text() == "--loud|dead|its process is gone"
    event = json.loads((tmp_path / "event").read_text())
    assert (event["run"], event["step"], event["text"]) == ("r", 5, "r is dead at step 5: its process is gone")


def test_a_webhook_is_tried_again_and_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(alerts, "TRY_SECONDS", 0.0)
    bodies, codes = list[bytes](), [500, 200]

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(codes.pop(0) if codes else 500)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        teller = Teller(lambda: ({}, Health("dead", "", None)), None, f"http://127.0.0.1:{server.server_address[1]}")
        teller.tell(EVENT)
        assert [json.loads(body)["kind"] for body in bodies] == ["dead", "dead"]
        teller.tell(EVENT)
        assert len(bodies) == 2 + alerts.TRIES
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert "try 4 of 4" in caplog.text
