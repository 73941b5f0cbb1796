"""Symbolic comparison within a time that is bounded, for callers without a pool: in an interpreter of its own."""

import atexit
import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time

from dcpo_async.grading.verdict import Verdict

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 5.0
"""Both by the clock and of processor time, from when the interpreter has loaded what it needs."""
STARTUP_SECONDS = 60.0
_SERVE = "from dcpo_async.grading.worker import serve; serve({})"


class Algebra:
    """One interpreter that compares answers, started by the first of them and again after one that took too long.

    Threads take turns. It ends with this process; a process that forks starts its own.
    """

    def __init__(self, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self.timeout_seconds = timeout_seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def verdict(self, extracted: str, reference: str) -> Verdict:
        """The verdict of `symbolic_verdict`, or one with reason `timeout` or `crashed`; never raises."""
        with self._lock:
            try:
                process = self._ready()
                assert process.stdin is not None, "opened as a pipe"
                process.stdin.write(json.dumps([extracted, reference]).encode() + b"\n")
                process.stdin.flush()
            except OSError as error:
                log.warning("no interpreter for algebra (%r): answers that need it count as wrong", error)
                self._stop()
                return Verdict(False, extracted, "crashed")
            line = _line_from(process, self.timeout_seconds)
            if line:
                correct, reason = json.loads(line)
                return Verdict(correct, extracted, reason)
            is_late = line is None or process.wait(timeout=STARTUP_SECONDS) == -signal.SIGPROF
            self._stop()
            return Verdict(False, extracted, "timeout" if is_late else "crashed")

    def close(self) -> None:
        """Ends the interpreter; the next answer starts another one."""
        with self._lock:
            self._stop()

    def _ready(self) -> subprocess.Popen[bytes]:
        """The interpreter, started where there is none; raises OSError where it does not come up."""
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return self._process
        self._stop()
        self._owner = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _SERVE.format(self.timeout_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        atexit.register(self._stop)
        if not _line_from(self._process, STARTUP_SECONDS):
            raise ChildProcessError("it did not start")
        return self._process

    def _stop(self) -> None:
        process, self._process = self._process, None
        atexit.unregister(self._stop)
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _line_from(process: subprocess.Popen[bytes], seconds: float) -> bytes | None:
    """The next line that a process writes; empty where it ended, None where that takes too long."""
    assert process.stdout is not None, "opened as a pipe"
    descriptor, deadline, line = process.stdout.fileno(), time.monotonic() + seconds, b""
    while not line.endswith(b"\n"):
        readable, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not readable:
            return None
        part = os.read(descriptor, 4096)
        if not part:
            return b""
        line += part
    return line
