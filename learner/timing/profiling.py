"""`training.profile`: what a rank does during some steps, for Perfetto and the memory viewer of PyTorch."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

log = logging.getLogger(__name__)

MAX_ALLOCATIONS = 1_000_000


class StepProfiler:
    """Writes a trace of consecutive steps, and on a GPU a snapshot of its memory with the history of allocations.

    On a CPU allocations are in the trace itself.
    """

    def __init__(self, steps: str | None, folder: Path, rank: int) -> None:
        """Args: steps, such as `3` or `3:5`, as metrics count them; none profiles nothing."""
        first, _, last = (steps or "0").partition(":")
        self._first, self._last = int(first), int(last or first)
        self._name = folder / f"steps-{self._first}-{self._last}-rank-{rank}"
        self._profiler: profile | None = None

    @contextmanager
    def around(self, step: int) -> Iterator[None]:
        """A step, counted from 1, happens in the context."""
        if step == self._first:
            self._begin()
        yield
        if step == self._last:
            self.close()

    def close(self) -> None:
        """Write what there is of steps that the run has ended in."""
        if self._profiler is not None:
            self._write(self._profiler)
            self._profiler = None

    def _begin(self) -> None:
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history(max_entries=MAX_ALLOCATIONS)
        self._profiler = profile(activities=activities, profile_memory=True)
        self._profiler.start()

    def _write(self, profiler: profile) -> None:
        profiler.stop()
        self._name.parent.mkdir(parents=True, exist_ok=True)
        trace = self._name.with_suffix(".json.gz")
        profiler.export_chrome_trace(str(trace))
        if torch.cuda.is_available():
            torch.cuda.memory._dump_snapshot(str(self._name.with_suffix(".pickle")))
            torch.cuda.memory._record_memory_history(enabled=None)
        log.info("the profile of steps %d to %d is in %s", self._first, self._last, trace)
