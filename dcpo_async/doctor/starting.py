"""What keeps a run from starting here: asked of the learner itself, which looks and starts nothing (`--check`)."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from dcpo_async.doctor.findings import Finding, error, said

CHECK_SECONDS = 600.0
WARNING = "warning: "
LEARNER = "dcpo-learner: "


def refused(configs: Sequence[Path], gpus: str | None, seconds: float = CHECK_SECONDS) -> Iterator[Finding]:
    """What `dcpo-learner CONFIG… --check` refuses or warns of: settings, data, the model, memory and disk.

    Args:
        gpus: as `--gpus` takes them; None leaves the choice to the learner.
    """
    words = ["--gpus", gpus] if gpus else []
    argv = [sys.executable, "-m", "learner.launcher", *map(str, configs), "--check", *words]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        yield error(f"`dcpo-learner --check` has not ended within {seconds:g} s", "run it by itself, and see where")
        return
    for line in done.stdout.splitlines():
        if line.startswith(WARNING):
            yield said("warning", line.removeprefix(WARNING), "`dcpo-learner --check` has the figures")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it says nothing"]
        told = next((line for line in reversed(lines) if line.startswith(LEARNER)), lines[-1])
        yield said("error", told.removeprefix(LEARNER), "`dcpo-learner --check` has the rest")
