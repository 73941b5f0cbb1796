"""What a run answers over HTTP, from its folder alone, in every state; and who may ask."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.responses import Response
from starlette.routing import Route

from dcpo_async.commands.status import show_status
from dcpo_async.errors import ConfigError
from dcpo_async.metrics.health import this_process
from dcpo_async.monitoring import server
from dcpo_async.monitoring.admission import Admission
from dcpo_async.monitoring.listen import checked_listen
from dcpo_async.monitoring.server import MonitorServer, WatchedRun
from tests.commands.test_status import actor, write_status


@contextmanager
def serving(folder: Path, token: str | None = None, learner_pid: int | None = None) -> Iterator[str]:
    made = MonitorServer({"run": WatchedRun(folder, learner_pid)}, "127.0.0.1", 0, token)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{made.server_address[1]}"
    finally:
        made.shutdown()
        thread.join()
        made.server_close()


def asked(address: str, token: str | None = None) -> tuple[int, str]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        with urlopen(Request(address, headers=headers), timeout=30) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def samples(text: str) -> dict[tuple[str, str], float]:
    """Values by name and what tells them apart beside the run."""
    return {
        (sample.name, ",".join(word for name, word in sorted(sample.labels.items()) if name != "run")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_are_those_of_the_status_and_follow_it(tmp_path: Path) -> None:
    step = {"reward": 0.5, "checkpoint_failures": 2.0}
    write_status(tmp_path, last_step=step, total_groups_accepted=60.0, total_leases=70.0, total_rewards_timeout=1.0)
    with serving(tmp_path) as address:
        code, text = asked(f"{address}/metrics")
        found = samples(text)
        assert code == 200
        assert (found["dcpo_step", ""], found["dcpo_up", ""], found["dcpo_reward_mean", ""]) == (30, 1, 0.5)
        assert (found["dcpo_run_state", "training"], found["dcpo_run_state", "dead"]) == (1, 0)
        assert (found["dcpo_groups_total", "accepted"], found["dcpo_groups_total", "invalid"]) == (60, 0)
        assert (found["dcpo_leases_total", ""], found["dcpo_rewards_failed_total", "timeout"]) == (70, 1)
        assert found["dcpo_checkpoint_failures_total", ""] == 2
        assert found["dcpo_actor_oldest_lease_age_seconds", "slow,node-1"] == 51
        assert found["dcpo_step_duration_seconds_count", ""] == 0
        write_status(tmp_path, step=31, actors_connected=[])
        with (tmp_path / "metrics.jsonl").open("a") as metrics:
            metrics.write('{"step": 31, "step_seconds": 2.0, "wait_seconds": 0.5}\n{"step": 32, "step_sec')
        found = samples(asked(f"{address}/metrics")[1])
        assert (found["dcpo_step", ""], found["dcpo_step_duration_seconds_count", ""]) == (31, 1)
        assert found["dcpo_step_duration_seconds_sum", ""] == 2
        assert not [key for key in found if key[0] == "dcpo_actor_leases"], "the series of actors that left are gone"


def test_the_series_of_actors_are_bounded(tmp_path: Path) -> None:
    write_status(tmp_path, actors_connected=[actor(f"a{n}", 1.0, oldest_lease_seconds=float(n)) for n in range(600)])
    with serving(tmp_path) as address:
        found = samples(asked(f"{address}/metrics")[1])
    leases = [key for key in found if key[0] == "dcpo_actor_leases"]
    assert len(leases) == 512
    assert ("dcpo_actor_leases", "a599,node-1") in leases
    assert found["dcpo_actors_without_series", ""] == 88


@pytest.mark.parametrize(
    ("changed", "health", "ready", "word"),
    [
        ({}, 200, 200, "training"),
        ({"weights_version": 0}, 200, 503, "training"),
        ({"actors": 0.0}, 200, 200, "waiting no actor is connected"),
        ({"is_over": True, "is_finished": True}, 200, 503, "finished"),
        ({"is_over": True}, 503, 503, "stopped"),
        ({"process": {**this_process(), "started": "1"}}, 503, 503, "dead"),
        ({"written_at": time.time() - 100}, 503, 503, "silent"),
    ],
)
def test_health_follows_from_the_state(
    tmp_path: Path, changed: dict[str, object], health: int, ready: int, word: str
) -> None:
    write_status(tmp_path, **changed)
    with serving(tmp_path) as address:
        code, text = asked(f"{address}/healthz")
        assert (code, text[: len(word)]) == (health, word)
        assert asked(f"{address}/readyz")[0] == ready
        dead = word in ("dead", "silent", "stopped", "finished")
        assert samples(asked(f"{address}/metrics")[1])["dcpo_up", ""] == (0 if dead else 1)


def test_a_learner_that_starts_is_healthy_and_not_ready_whatever_its_predecessor_left(tmp_path: Path) -> None:
    with serving(tmp_path, learner_pid=5) as address:
        assert (asked(f"{address}/healthz"), asked(f"{address}/readyz")[0]) == ((200, "starting\n"), 503)
        assert asked(f"{address}/status.json")[0] == 503
        assert samples(asked(f"{address}/metrics")[1])["dcpo_up", ""] == 0
        write_status(tmp_path)
        assert asked(f"{address}/healthz") == (200, "starting\n")


def test_the_status_can_be_asked_for_in_place_of_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_status(tmp_path)
    with serving(tmp_path) as address:
        status = json.loads(asked(f"{address}/status.json")[1])
        assert (status["step"], status["run_id"]) == (30, "run-1")
        assert show_status(address.removeprefix("http://"), watch=False, as_json=False) == 0
        assert "● training" in capsys.readouterr().out
        write_status(tmp_path, written_at=time.time() - 100)
        assert show_status(address, watch=False, as_json=True) == 3
        assert json.loads(capsys.readouterr().out)["health"]["state"] == "silent"


def test_without_the_token_only_health_is_told(tmp_path: Path) -> None:
    write_status(tmp_path)
    with serving(tmp_path, token="0123456789abcdef") as address:
        for path in ("/metrics", "/status.json"):
            assert asked(address + path)[0] == 401
            assert asked(address + path, "0123456789abcdee")[0] == 401
            assert asked(address + path, "0123456789abcdef")[0] == 200
        assert asked(f"{address}/healthz")[0] == 200
        assert asked(f"{address}/etc/passwd", "0123456789abcdef")[0] == 404


def test_a_browser_that_was_led_here_by_another_name_is_told_nothing_but_health(tmp_path: Path) -> None:
    write_status(tmp_path)
    with serving(tmp_path) as address:
        for path in ("/api/now", "/status.json", "/metrics"):
            request = Request(address + path, headers={"Host": "attacker.example"})
            with pytest.raises(HTTPError) as refused:
                urlopen(request, timeout=30)
            refused.value.close()
            assert refused.value.code == 421


def test_who_types_in_the_token_gets_a_cookie_that_stands_for_it(tmp_path: Path) -> None:
    write_status(tmp_path)
    with serving(tmp_path, token="0123456789abcdef") as address:
        code, text = asked(f"{address}/")
        assert (code, "<form" in text) == (401, True)
        guard = Admission("0123456789abcdef")
        cookie = guard.let_in(Response()).headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "0123456789abcdef" not in cookie
        request = Request(f"{address}/metrics", headers={"Cookie": cookie.partition(";")[0]})
        with urlopen(request, timeout=30) as answer:
            assert "script-src 'self'" in answer.headers["Content-Security-Policy"]
        wrong = Request(f"{address}/login", data=b"token=0123456789abcdee")
        with pytest.raises(HTTPError) as refused:
            urlopen(wrong, timeout=30)
        refused.value.close()
        assert refused.value.code == 401


@pytest.mark.parametrize("text", ["9557", "127.0.0.1", "127.0.0.1:99999", "127.0.0.1:x", ":9557"])
def test_a_place_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected HOST:PORT"):
        checked_listen(text, None)


def test_off_loopback_a_token_is_needed_that_cannot_be_guessed(tmp_path: Path) -> None:
    assert checked_listen("127.0.0.1:9557", None) == ("127.0.0.1", 9557, None)
    with pytest.raises(ConfigError, match="name a file with a token"):
        checked_listen("0.0.0.0:9557", None)
    file = tmp_path / "token"
    with pytest.raises(ConfigError, match="No such file"):
        checked_listen("0.0.0.0:9557", file)
    file.write_text("short\n")
    with pytest.raises(ConfigError, match="at least 16"):
        checked_listen("0.0.0.0:9557", file)
    file.write_text("0123456789abcdef\n")
    assert checked_listen("0.0.0.0:9557", file) == ("0.0.0.0", 9557, "0123456789abcdef")


def test_a_port_that_is_taken_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path) as address, pytest.raises(ConfigError, match="choose another port"):
        MonitorServer({"run": WatchedRun(tmp_path)}, "127.0.0.1", int(address.rpartition(":")[2]))


SLOW_REQUESTS = {
    "a first head": (b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: "),
    "a second head": (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /healthz HTTP/1.1\r\nX-Slow: "),
    "a login": (b"", b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4000\r\n\r\ntoken="),
    "a body that nobody reads": (b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4000\r\n\r\n"),
}


def test_a_request_that_arrives_byte_by_byte_does_not_keep_its_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server, "REQUEST_SECONDS", 1.0)
    write_status(tmp_path)
    with serving(tmp_path, token="a" * 40) as address, contextlib.ExitStack() as closing:
        port = int(address.rpartition(":")[2])
        slow: dict[str, socket.socket] = {}
        for name, (before, head) in SLOW_REQUESTS.items():
            slow[name] = closing.enter_context(socket.create_connection(("127.0.0.1", port)))
            slow[name].sendall(before)
            if before:
                assert slow[name].recv(4096).startswith(b"HTTP/1.1 200")
            slow[name].sendall(head)
        deadline = time.monotonic() + 4.0
        while slow and time.monotonic() < deadline:
            time.sleep(0.1)
            for name in list(slow):
                if is_closed(slow[name]):
                    del slow[name]
        assert not slow
        assert asked(f"{address}/healthz")[0] == 200
    assert "Exception" not in caplog.text


def test_an_answer_that_nobody_reads_does_not_keep_its_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "ANSWER_SECONDS", 1.0)
    large = b"x" * (64 << 20)
    routes = [Route("/large", lambda request: Response(large))]
    made = MonitorServer({"run": WatchedRun(tmp_path)}, "127.0.0.1", 0, routes=routes)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    try:
        with contextlib.ExitStack() as closing:
            idle, slow = [closing.enter_context(socket.create_connection(made.server_address)) for _ in range(2)]
            for connection in (idle, slow):
                connection.settimeout(10)
                connection.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
            num_read, until = 0, time.monotonic() + 3.0
            while num_read < len(large) and (read := slow.recv(1 << 20)):
                num_read += len(read)
                time.sleep(0.05 if time.monotonic() < until else 0.0)
            assert num_read >= len(large)
            assert is_closed(idle)
    finally:
        made.shutdown()
        thread.join()
        made.server_close()


def is_closed(connection: socket.socket) -> bool:
    """Whether it ends when one more byte is sent on it; what was answered is passed over."""
    connection.settimeout(0.01)
    try:
        connection.sendall(b"x")
        while connection.recv(4096):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True
