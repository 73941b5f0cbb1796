"""Seconds and memory of a stretch of work; for both sides, so it imports nothing but the standard library."""

import json
import time
from pathlib import Path


class Measure:
    """Wall and processor seconds, and the peak of resident memory over where it stood when this was made."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self._base = _kilobytes("VmRSS")

    def start(self) -> None:
        """The timed part begins."""
        self._began = time.perf_counter(), time.process_time()

    def report(self) -> str:
        """One line of JSON: seconds, cpu_seconds, peak_mib."""
        seconds = time.perf_counter() - self._began[0]
        cpu_seconds = time.process_time() - self._began[1]
        peak = (_kilobytes("VmHWM") - self._base) / 1024
        return json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mib": peak})


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])
