"""What a process that compares symbolically does: it bounds itself, and the kernel ends it."""

import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from dcpo_async.grading.grader import symbolic_verdict
from dcpo_async.grading.verdict import Verdict

WORKER_MEMORY_BYTES = 2 * 2**30


def prepare() -> None:
    """Runs once in each process, before the clock of its first answer starts."""
    confine()
    symbolic_verdict(r"\int_0^x 2t\,dt", "x^2")  # loads sympy, what it integrates with, and math-verify's grammar


def confine() -> None:
    """Read and write nothing of the terminal, end at once when told to, and take so much memory at most."""
    # pebble's handler runs in Python, which a long integer operation never returns to.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)
    if sys.platform == "linux":
        # On top of what is mapped already: the libraries of a CUDA build alone can be more than the limit.
        mapped_pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = mapped_pages * resource.getpagesize() + WORKER_MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def grade_in_time(extracted: str, reference_answer: str, timeout_seconds: float) -> Verdict:
    """The verdict; the kernel ends this process where it takes more processor time than that."""
    with limited(timeout_seconds):
        return symbolic_verdict(extracted, reference_answer)


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """The kernel ends this process where what is done inside takes more processor time."""
    # It kills by this timer, whatever the interpreter is busy with and whether the parent lives.
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)


def serve(timeout_seconds: float) -> None:
    """Answer pairs from standard input, one JSON list a line, until it ends."""
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    prepare()
    answers.write(b"ready\n")
    answers.flush()
    for line in questions:
        extracted, reference = json.loads(line)
        verdict = grade_in_time(extracted, reference, timeout_seconds)
        answers.write(json.dumps([verdict.correct, verdict.reason]).encode() + b"\n")
        answers.flush()
