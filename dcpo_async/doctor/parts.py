"""The processes of a learner on this machine: those that were stopped, and do nothing until they are told to go on."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dcpo_async.doctor.findings import Finding, error
from dcpo_async.metrics.health import is_running

STOPPED = "Tt"
"""By a signal, or by a debugger (proc(5))."""
PARTS = {
    "learner.trainer.rank": "the trainer",
    "learner.publisher": "the publisher",
    "learner.weights.server": "the weight server",
    "learner.launcher": "the learner",
}


def parts(status: Mapping[str, Any], proc: Path = Path("/proc")) -> Iterator[Finding]:
    """Stopped processes of a run's learner; none where it runs on another machine, which cannot be seen."""
    if not is_running(status, proc):
        return
    parents = dict(_processes(proc))
    family, pids = set[int](), {int(status["process"]["pid"])}
    while pids:
        family |= pids
        pids = {pid for pid, (parent, _) in parents.items() if parent in pids} - family
    for pid in sorted(family & parents.keys()):
        if parents[pid][1] in STOPPED:
            yield error(
                f"{_name(pid, proc)}, process {pid}, is stopped (a signal, or a debugger)",
                f"`kill -CONT {pid}`; where that does not help, kill it: it is started again, and nothing is lost",
            )


def _processes(proc: Path) -> Iterator[tuple[int, tuple[int, str]]]:
    """Each process with its parent and its state."""
    for path in proc.iterdir():
        if path.name.isdecimal():
            try:
                fields = (path / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            yield int(path.name), (int(fields[1]), fields[0])


def _name(pid: int, proc: Path) -> str:
    try:
        words = (proc / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        words = []
    return next((PARTS[word] for word in words if word in PARTS), "a part of the learner")
