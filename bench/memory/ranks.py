"""Starts the ranks of one case, each a run of the same program, which print on this one's terminal."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from learner.ranks import rank_environments


def run_ranks(num_ranks: int, words: Sequence[str]) -> None:
    """Run Python with these words as ranks with a thread each, to their end; raises SystemExit where one fails."""
    with tempfile.TemporaryDirectory(prefix="dcpo-bench-") as meeting:
        running = [
            subprocess.Popen([sys.executable, *words], env={**os.environ, **rank, "OMP_NUM_THREADS": "1"})
            for rank in rank_environments(num_ranks, Path(meeting))
        ]
        if any([process.wait() for process in running]):
            raise SystemExit(1)
