"""Starts ranks for a test as the learner starts its own."""

from pathlib import Path

from dcpo_async.processes import last_lines, module_argv
from dcpo_async.supervision import run_members
from learner.ranks import rank_environments


async def run_ranks(module: str, *words: object, num_ranks: int = 2, folder: Path) -> str:
    """Run a module as ranks on the CPU to their end, which must be good; returns the end of their log."""
    members, environment = rank_environments(num_ranks, folder), {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    code = await run_members(module_argv(module, *map(str, words)), members, folder / "log", environment)
    assert code == 0, last_lines(folder / "log", 60)
    return last_lines(folder / "log", 5)
