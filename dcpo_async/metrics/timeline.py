"""What took how long in all processes of a run: spans, written by the coordinator, and the trace that is made of them.

Other processes tell how long things took, never when: durations travel in the messages that they send anyway, and the
coordinator's clock says when. So clocks of machines need not agree; a span is off by what its message took.
"""

import contextlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

log = logging.getLogger(__name__)

FILE_BYTES, NUM_FILES = 8 << 20, 8
"""At most 64 MiB of spans are kept, some weeks of a run whose steps take a minute, however often it is started."""
LEAST_SECONDS = 1e-3
CLOCK_SECONDS = 1e-4
"""Spans that are written down one after the other take their ends from the clock a little apart."""


class Span(NamedTuple):
    """One stretch of time.

    Attributes:
        process: of a run, such as `trainer` or an actor's session.
        name: what happened.
        start, seconds: when it began, in seconds since 1970 by the coordinator's clock, and how long it took.
        facts: numbers and words to show with it.
    """

    process: str
    name: str
    start: float
    seconds: float
    facts: Mapping[str, Any]


class SpanLog:
    """Writes spans into files of bounded size, of which the newest are kept; what a full disk refuses is left out."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        numbers = [int(path.stem) for path in folder.glob("*.jsonl")]
        self._number, self._is_refused = max(numbers, default=0), False
        newest = folder / f"{self._number:08d}.jsonl"
        if newest.exists() and newest.stat().st_size <= FILE_BYTES:
            self._file: TextIO = newest.open("a")
            # After a line that a crash cut short.
            self._file.write("\n")
        else:
            self._file = self._next()

    def add(self, process: str, name: str, seconds: float, ended_ago: float = 0.0, **facts: Any) -> None:
        """Write down what took `seconds` and ended `ended_ago` seconds before now, unless nobody could see it."""
        self._write(process, name, seconds, time.time() - ended_ago, facts)

    def chain(self, process: str, parts: Iterable[tuple[str, float]], whole: str = "", **facts: Any) -> None:
        """Write down what happened one after the other until now, and around it the whole, where it has a name."""
        listed, end = list(parts), time.time()
        if whole:
            self._write(process, whole, sum(seconds for _, seconds in listed), end, facts)
        for name, seconds in reversed(listed):
            self._write(process, name, seconds, end, facts)
            end -= seconds

    @contextlib.contextmanager
    def timed(self, process: str, name: str) -> Iterator[None]:
        """Write down how long a block of code takes."""
        began = time.monotonic()
        yield
        self.add(process, name, time.monotonic() - began)

    def _write(self, process: str, name: str, seconds: float, end: float, facts: Mapping[str, Any]) -> None:
        if seconds < LEAST_SECONDS:
            return
        start = end - seconds
        with self._tolerant():
            self._file.write(json.dumps([process, name, round(start, 6), round(seconds, 6), facts]) + "\n")
            if self._file.tell() > FILE_BYTES:
                full, self._file = self._file, self._next()
                full.close()

    def flush(self) -> None:
        """Let readers see what was written."""
        with self._tolerant():
            self._file.flush()
            self._is_refused = False

    def close(self) -> None:
        """Close the file."""
        with self._tolerant():
            self._file.close()

    @contextlib.contextmanager
    def _tolerant(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._is_refused:
                log.warning("%s lacks spans of what happens now: %s", self._folder, error)
            self._is_refused = True

    def _next(self) -> TextIO:
        self._number += 1
        (self._folder / f"{self._number - NUM_FILES:08d}.jsonl").unlink(missing_ok=True)
        return (self._folder / f"{self._number:08d}.jsonl").open("w")


def read_spans(folder: Path) -> Iterator[Span]:
    """The spans in a folder, oldest file first; a line that is not whole yet is left out."""
    for path in sorted(folder.glob("*.jsonl")):
        for line in filter(None, path.read_text().splitlines()):
            try:
                yield Span(*json.loads(line))
            except json.JSONDecodeError:
                continue


def trace(spans: Iterable[Span]) -> dict[str, Any]:
    """Spans as a trace for ui.perfetto.dev and chrome://tracing.

    A process has as many lanes as things happen in it at once.
    """
    # What contains others comes before them.
    ordered = sorted(spans, key=lambda span: (round(span.start, 4), -span.seconds))
    first = ordered[0].start if ordered else 0.0
    pids: dict[str, int] = {}
    lanes: dict[str, list[list[Span]]] = {}
    events: list[dict[str, Any]] = []
    for span in ordered:
        if span.process not in pids:
            pids[span.process] = len(pids) + 1
            lanes[span.process] = []
            named = {"name": "process_name", "ph": "M", "pid": pids[span.process], "args": {"name": span.process}}
            events.append(named)
        lane = _lane(lanes[span.process], span)
        events.append(
            {
                "name": span.name,
                "ph": "X",
                "pid": pids[span.process],
                "tid": lane + 1,
                "ts": round((span.start - first) * 1e6),
                "dur": round(span.seconds * 1e6),
                "args": dict(span.facts),
            }
        )
    return {"traceEvents": events, "displayTimeUnit": "ms", "metadata": {"starts_at_unix_seconds": first}}


def _lane(lanes: list[list[Span]], span: Span) -> int:
    """The first lane in which nothing happens when a span begins, or only what contains it: the lease of its group."""
    for lane, open_spans in enumerate(lanes):
        while open_spans and _end(open_spans[-1]) <= span.start + CLOCK_SECONDS:
            open_spans.pop()
        if not open_spans or _contains(open_spans[-1], span):
            open_spans.append(span)
            return lane
    lanes.append([span])
    return len(lanes) - 1


def _contains(outer: Span, inner: Span) -> bool:
    group = outer.facts.get("position")
    return group is not None and group == inner.facts.get("position") and _end(inner) <= _end(outer) + CLOCK_SECONDS


def _end(span: Span) -> float:
    return span.start + span.seconds
