"""The HTTP server: /metrics, /healthz, /readyz and /status.json of runs, read-only, from the files in their folders."""

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

import h11
import uvicorn
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from dcpo_async.errors import ConfigError, DcpoError
from dcpo_async.metrics.health import Health, health_of, is_running
from dcpo_async.metrics.live_table import read_status
from dcpo_async.monitoring.admission import Admission, Guard
from dcpo_async.monitoring.exposition import families
from dcpo_async.monitoring.step_tail import StepTail
from dcpo_async.run_folder import RunFolder

log = logging.getLogger(__name__)

REQUEST_SECONDS = 10.0
"""A connection that says nothing for so long is closed, and one whose request takes longer to arrive."""
ANSWER_SECONDS = 60.0
"""One that takes nothing of its answer for so long is closed."""
MAX_CONNECTIONS = 256


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


class MonitorServer:
    """Answers for runs, or for the engines of one machine; `?run=NAME` says for which, where there are several.

    Args:
        runs: what is looked at, by name.
        host, port: where it listens; port 0 is any free one.
        token: that every request but those for health must bear; None on loopback.
        routes: what else is answered.

    Attributes:
        server_address: where it listens.

    Raises ConfigError where it cannot listen.
    """

    def __init__(
        self,
        runs: Mapping[str, Watched],
        host: str,
        port: int,
        token: str | None = None,
        routes: Sequence[BaseRoute] = (),
    ) -> None:
        self._runs = runs
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host.strip("[]"), port), family=family, backlog=16)
        except OSError as error:
            raise ConfigError(f"--http {host}:{port}: {error.strerror}; choose another port") from None
        self.server_address: tuple[str, int] = self._socket.getsockname()[:2]
        own = [
            Route("/metrics", self._metrics),
            Route("/healthz", self._healthz),
            Route("/readyz", self._readyz),
            Route("/status.json", self._status),
        ]
        app = Starlette(
            routes=[*own, *routes],
            middleware=[Middleware(Guard, admission=Admission(token))],
            exception_handlers={DcpoError: _refused, HTTPStatus.NOT_FOUND: _not_found},
        )
        config = uvicorn.Config(
            app,
            http=_Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=int(REQUEST_SECONDS),
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)

    def serve_forever(self) -> None:
        """Answer until the shutdown."""
        self._server.run(sockets=[self._socket])

    def shutdown(self) -> None:
        """Let `serve_forever` end, from any thread or a handler of signals."""
        self._server.should_exit = True

    def server_close(self) -> None:
        """Let go of the port."""
        self._socket.close()

    def _metrics(self, request: Request) -> Response:
        return Response(asked_run(self._runs, request).metrics(), media_type=CONTENT_TYPE_LATEST)

    def _status(self, request: Request) -> Response:
        status, _ = asked_run(self._runs, request).look()
        found = HTTPStatus.OK if status else HTTPStatus.SERVICE_UNAVAILABLE
        return Response(json.dumps(status | {"served_at": time.time()}), found, media_type="application/json")

    def _healthz(self, request: Request) -> Response:
        return self._health(request, is_ready_asked=False)

    def _readyz(self, request: Request) -> Response:
        return self._health(request, is_ready_asked=True)

    def _health(self, request: Request, *, is_ready_asked: bool) -> Response:
        """Healthy is a learner that starts, works or has finished; ready is one that has weights for actors."""
        run = asked_run(self._runs, request)
        status, health = run.look()
        if run.is_starting:
            is_good, said = not is_ready_asked, "starting"
        else:
            said = f"{health.state} {health.why}".strip()
            if is_ready_asked:
                is_good = health.is_live and status.get("weights_version", 0) > 0
            else:
                is_good = health.is_live or health.state == "finished"
        return PlainTextResponse(f"{said}\n", HTTPStatus.OK if is_good else HTTPStatus.SERVICE_UNAVAILABLE)


def asked_run(runs: Mapping[str, Watched], request: Request) -> Watched:
    """The run that a request is about."""
    return runs[asked_name(runs, request)]


def asked_name(runs: Mapping[str, Any], request: Request) -> str:
    """The name of the run that a request is about; HTTPException 400 or 404 where it does not say, or there is none."""
    name = request.query_params.get("run")
    if name is None:
        if len(runs) > 1:
            raise HTTPException(HTTPStatus.BAD_REQUEST, f"say of which run: ?run= one of {', '.join(runs)}")
        return next(iter(runs))
    if name not in runs:
        raise HTTPException(HTTPStatus.NOT_FOUND, "no such run is served here")
    return name


class _Connection(H11Protocol):
    """One that has asked for nothing a while after it was made is closed, and one whose request does not get whole.

    A request has as long, from its first byte on, for all of its head and body. One whose answer nobody reads is closed
    as well.
    """

    _arriving: asyncio.TimerHandle | None = None
    _leaving: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self.loop.call_later(REQUEST_SECONDS, self._close_if_mute)

    def data_received(self, data: bytes) -> None:
        if self._arriving is None:
            self._arriving = self.loop.call_later(REQUEST_SECONDS, self.transport.abort)
        super().data_received(data)
        is_between = self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        if is_between or self.conn.their_state is h11.DONE:
            self._forget_arrival()

    def pause_writing(self) -> None:
        self._look_again()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._forget_leaving()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_arrival()
        self._forget_leaving()
        super().connection_lost(exc)

    def _forget_arrival(self) -> None:
        if self._arriving is not None:
            self._arriving.cancel()
            self._arriving = None

    def _look_again(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._leaving = self.loop.call_later(ANSWER_SECONDS, self._close_if_unread, left)

    def _close_if_unread(self, left: int) -> None:
        if self.transport.get_write_buffer_size() == left:
            self.transport.abort()
        else:
            self._look_again()

    def _forget_leaving(self) -> None:
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None

    def _close_if_mute(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


async def _refused(request: Request, error: Exception) -> Response:
    code = HTTPStatus.NOT_FOUND if isinstance(error, ConfigError) else HTTPStatus.SERVICE_UNAVAILABLE
    return PlainTextResponse(f"{error}\n", code)


async def _not_found(request: Request, error: Exception) -> Response:
    said = getattr(error, "detail", "") if request.query_params.get("run") else ""
    return PlainTextResponse(f"{said or '/metrics /healthz /readyz /status.json'}\n", HTTPStatus.NOT_FOUND)
