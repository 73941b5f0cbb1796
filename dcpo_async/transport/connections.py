"""The TCP connections of a listening socket: as many as there are descriptors for, and none that says nothing."""

import errno
import resource
import socket
import time
from collections.abc import Callable

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from dcpo_async.transport.admission import KeyHolder

SILENT_SECONDS = 30.0
"""Whoever comes in earnest says hello at once."""
RESERVED_DESCRIPTORS = 256
"""For files, pipes and processes of the service itself."""
_FAILURES = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | _FAILURES

Speaker = tuple[bytes, KeyHolder | None]
"""A connection as the router names it, and whose key it has shown."""


def raise_descriptor_limit() -> int:
    """Let this process have as many descriptors as it may; returns how many connections that leaves room for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit = min(hard, 1 << 20) if hard != resource.RLIM_INFINITY else 1 << 20
    return max(limit - RESERVED_DESCRIPTORS, limit // 2)


class Connections:
    """Closes what is silent, and what is too much: libzmq itself accepts all, until no file can be opened any more.

    Args:
        listening: a bound socket; its monitor is taken.
        silent_seconds: a connection that has brought no message by then is closed.
        max_connections: beyond it, the oldest silent one is closed for each new one, or else the new one.
        failed: told of each handshake that failed before a key was seen, by libzmq's number for why, or 0.

    Attributes:
        num_closed: so far.
    """

    def __init__(
        self,
        listening: zmq.asyncio.Socket,
        max_connections: int,
        silent_seconds: float = SILENT_SECONDS,
        failed: Callable[[int], None] = lambda problem: None,
    ) -> None:
        self._listening, self._max_connections, self.num_closed = listening, max_connections, 0
        self._silent_seconds, self._failed = silent_seconds, failed
        address = f"inproc://connections-{id(self)}"
        listening.monitor(address, _EVENTS)
        self._monitor: zmq.Socket[bytes] = zmq.Context.shadow(listening.context.underlying).socket(zmq.PAIR)
        self._monitor.setsockopt(zmq.LINGER, 0)
        self._monitor.setsockopt(zmq.RCVHWM, 0)
        self._monitor.connect(address)
        self._open: dict[int, Speaker | None] = {}
        self._silent: dict[int, float] = {}

    def heard(self, descriptor: int, speaker: Speaker) -> None:
        """A message came over a connection."""
        if self._open.get(descriptor) != speaker:
            # What is known of the descriptor may be of a connection that had it before.
            self._take_in_events()
            self._open[descriptor] = speaker
        self._silent.pop(descriptor, None)

    def close_where(self, is_unwanted: Callable[[Speaker], bool]) -> list[tuple[Speaker, str]]:
        """End those that have spoken and are not wanted any more; returns them, and the address of each."""
        unwanted = [(at, speaker) for at, speaker in self._open.items() if speaker is not None and is_unwanted(speaker)]
        return [(speaker, self._close(at)) for at, speaker in unwanted]

    def look(self) -> None:
        """Take in who came and went, and close what has to be closed."""
        self._take_in_events()
        now = time.monotonic()
        while self._silent and now - self._silent[oldest := next(iter(self._silent))] > self._silent_seconds:
            self._close(oldest)

    def stop(self) -> None:
        """Let go of the monitor."""
        self._listening.monitor(None, 0)
        self._monitor.close()

    def _take_in_events(self) -> None:
        now = time.monotonic()
        while True:
            try:
                event = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                break
            if event["event"] & _FAILURES:
                has_reason = event["event"] == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
                self._failed(event["value"] if has_reason else 0)
                continue
            descriptor = event["value"]
            self._open.pop(descriptor, None)
            self._silent.pop(descriptor, None)
            if event["event"] == zmq.EVENT_ACCEPTED:
                self._open[descriptor], self._silent[descriptor] = None, now
                if len(self._open) > self._max_connections:
                    self._close(next(iter(self._silent)))

    def _close(self, descriptor: int) -> str:
        """End a connection from outside of libzmq, which drops it as if the peer had; returns the peer's address."""
        self._open.pop(descriptor, None)
        self._silent.pop(descriptor, None)
        try:
            # No descriptor of its own: there may be none left.
            connection = socket.socket(fileno=descriptor)
        except OSError:
            # It is gone already, and the number may be another file's by now.
            return ""
        try:
            address = connection.getpeername()
            connection.shutdown(socket.SHUT_RDWR)
            self.num_closed += 1
            return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "this machine"
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
            return ""
        finally:
            connection.detach()
