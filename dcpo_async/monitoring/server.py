"""The HTTP server: /metrics, /healthz, /readyz and /status.json of one run, read-only, from the files in its folder."""

import hmac
import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from dcpo_async.errors import ConfigError
from dcpo_async.limits import quoted
from dcpo_async.metrics.health import Health, health_of, is_running
from dcpo_async.metrics.live_table import read_status
from dcpo_async.monitoring.exposition import families
from dcpo_async.monitoring.step_tail import StepTail
from dcpo_async.run_folder import RunFolder
from dcpo_async.transport.security import is_loopback

log = logging.getLogger(__name__)

DEFAULT_LISTEN = "127.0.0.1:9557"
MIN_TOKEN_CHARS = 16
REQUEST_SECONDS = 10.0
"""A connection that says nothing for so long is closed."""


class Watched(Protocol):
    """What a server answers for."""

    @property
    def is_starting(self) -> bool:
        """Whether what is there is of an earlier start, or nothing."""

    def look(self) -> tuple[dict[str, Any], Health]:
        """The status, and what it amounts to."""

    def metrics(self) -> bytes:
        """The answer to a scrape."""


class WatchedRun(Collector):
    """A run as its folder tells it, at each look.

    Args:
        folder: of the run.
        learner_pid: of the learner that this process belongs to; None beside any.
    """

    def __init__(self, folder: Path, learner_pid: int | None = None) -> None:
        self._folder, self._learner_pid, self._lock = folder, learner_pid, threading.Lock()
        self._tail = StepTail(RunFolder(folder).metrics)
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def look(self) -> tuple[dict[str, Any], Health]:
        """The status, and what it amounts to."""
        status = read_status(self._folder)
        return status, health_of(status, time.time(), is_running(status))

    @property
    def is_starting(self) -> bool:
        """Whether the learner has not written a status yet: what is there is of an earlier start."""
        process = read_status(self._folder).get("process") or {}
        return self._learner_pid is not None and process.get("pid") != self._learner_pid

    def collect(self) -> Iterator[Metric]:
        """What Prometheus asks for."""
        return families(*self.look())

    def metrics(self) -> bytes:
        """The answer to a scrape."""
        with self._lock:
            self._tail.look()
            return bytes(generate_latest(self._registry)) + bytes(generate_latest(self._tail.registry))


class MonitorServer(ThreadingHTTPServer):
    """Answers for one run, or for the engines of one machine.

    Args:
        run: what is looked at.
        host, port: where it listens; port 0 is any free one.
        token: that every request but those for health must bear; None on loopback.

    Raises ConfigError where it cannot listen.
    """

    daemon_threads = True
    request_queue_size = 16

    def __init__(self, run: Watched, host: str, port: int, token: str | None = None) -> None:
        self.run, self.token = run, token
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise ConfigError(f"--http {host}:{port}: {error.strerror}; choose another port") from None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asked has gone, or what it asked could not be read."""
        log.warning("a request of %s was not answered: %s", quoted(client_address[0]), sys.exc_info()[1])


def checked_listen(text: str, token_file: Path | None) -> tuple[str, int, str | None]:
    """Host and port of `127.0.0.1:9557`, and the token in a file.

    Raises:
        ConfigError: no such place, a token that is missing off loopback, or one that is too short.
    """
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isdecimal() and int(port) < 65536):
        raise ConfigError(f"--http {text}: expected HOST:PORT, such as {DEFAULT_LISTEN}")
    if token_file is None:
        if not is_loopback(host):
            raise ConfigError(
                f"--http {text} is not on this machine alone: name a file with a token, --http-token FILE"
            )
        return host, int(port), None
    try:
        token = token_file.read_text().strip()
    except OSError as error:
        raise ConfigError(f"--http-token {token_file}: {error.strerror}") from None
    if len(token) < MIN_TOKEN_CHARS or not token.isascii():
        raise ConfigError(
            f"--http-token {token_file}: at least {MIN_TOKEN_CHARS} ASCII characters, as `openssl rand -hex 32` writes"
        )
    return host, int(port), token


class _Handler(BaseHTTPRequestHandler):
    server: MonitorServer
    server_version, sys_version = "dcpo", ""
    timeout = REQUEST_SECONDS

    def do_GET(self) -> None:
        """Answer one request."""
        path = self.path.partition("?")[0]
        if path in ("/healthz", "/readyz"):
            self._health(is_ready_asked=path == "/readyz")
        elif not self._is_admitted():
            self._answer(HTTPStatus.UNAUTHORIZED, "text/plain", b"a token is needed\n")
        elif path == "/metrics":
            self._answer(HTTPStatus.OK, CONTENT_TYPE_LATEST, self.server.run.metrics())
        elif path == "/status.json":
            status, _ = self.server.run.look()
            found = HTTPStatus.OK if status else HTTPStatus.SERVICE_UNAVAILABLE
            self._answer(found, "application/json", json.dumps(status | {"served_at": time.time()}).encode())
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"/metrics /healthz /readyz /status.json\n")

    def _health(self, *, is_ready_asked: bool) -> None:
        """Healthy is a learner that starts, works or has finished; ready is one that has weights for actors."""
        run = self.server.run
        status, health = run.look()
        if run.is_starting:
            is_good, said = not is_ready_asked, "starting"
        else:
            said = f"{health.state} {health.why}".strip()
            if is_ready_asked:
                is_good = health.is_live and status.get("weights_version", 0) > 0
            else:
                is_good = health.is_live or health.state == "finished"
        found = HTTPStatus.OK if is_good else HTTPStatus.SERVICE_UNAVAILABLE
        self._answer(found, "text/plain", f"{said}\n".encode())

    def _is_admitted(self) -> bool:
        token = self.server.token
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return token is None or hmac.compare_digest(given.encode(), token.encode())

    def _answer(self, code: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not worth a line."""
