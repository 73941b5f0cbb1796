"""Writes a checkpoint again and again, killed at each line of it in turn: `FOLDER`.

Each kill is SIGKILL of a process of its own, forked with a state that the writing thread then makes a checkpoint of.
"""

import asyncio
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from dcpo_async.config import RunConfig
from dcpo_async.protocol.messages import Message
from learner.checkpoints.folder import complete_steps, remove_leftovers, step_folder, verified_checkpoint
from learner.checkpoints.saving import Checkpoints
from tests.learner.checkpoints.test_saving import OneRank

WATCHED = ("learner/checkpoints/", "dcpo_async/durable.py")


def killed_at(point: int) -> Callable[[FrameType, str, Any], Any]:
    """Traces a thread: SIGKILL at so many lines of the product's own."""
    passed = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal passed
        if not any(name in frame.f_code.co_filename for name in WATCHED):
            return None
        if event == "line":
            passed += 1
            if passed == point:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


async def save(folder: Path, step: int) -> None:
    """Checkpoint of a state that is its step; the one before is superfluous then."""

    async def tell(message: Message) -> None:
        assert message.kind == "checkpointed", message

    ranks = OneRank()
    ranks.weights = torch.full((1000,), float(step))
    checkpoints = Checkpoints(RunConfig(folder=folder, checkpoint={"keep_last": 1}), ranks, tell)
    checkpoints.begin(0)
    await checkpoints.offer_last(step)
    await checkpoints.whole()


def is_killed(folder: Path, point: int) -> bool:
    """Whether there were so many lines to die at."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            threading.settrace(killed_at(point))
            asyncio.run(save(folder, 4))
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status == signal.SIGKILL


def main(folder: Path) -> None:
    """After each kill, what a start finds is whole, and is the old state or the new one."""
    checkpoints, kept = folder / "checkpoints", folder / "kept"
    asyncio.run(save(folder, 2))
    shutil.copytree(checkpoints, kept)
    stood: list[int] = []
    is_alive = False
    while not is_alive:
        shutil.rmtree(checkpoints)
        shutil.copytree(kept, checkpoints)
        is_alive = not is_killed(folder, len(stood) + 1)
        for step in complete_steps(checkpoints):
            verified_checkpoint(checkpoints, step, OneRank().layout)
        newest = max(complete_steps(checkpoints))
        content = torch.load(checkpoints / step_folder(newest) / "state.pt", weights_only=True)
        assert torch.equal(content["weights"], torch.full((1000,), float(newest)))
        remove_leftovers(checkpoints)
        assert all(path.name.startswith("step-") for path in checkpoints.iterdir())
        stood.append(newest)
    # The old one until the new one has its name, then never again the old one.
    assert stood == sorted(stood)
    print(stood.count(2), stood.count(4))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
