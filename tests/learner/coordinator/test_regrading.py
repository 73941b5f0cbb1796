"""A sampled share of responses is graded again, and disagreement is counted."""

import asyncio
import contextlib
from collections import Counter

import numpy as np
import psutil
import pytest

from dcpo_async.config.loading import load_config
from dcpo_async.protocol.messages import Array, GroupMessage
from dcpo_async.records import Prompt
from learner.coordinator.regrading import Regrader


def group(rewards: tuple[float, ...], texts: tuple[str, ...]) -> tuple[GroupMessage, dict[str, Array]]:
    count = len(texts)
    message = GroupMessage(
        position=5,
        attempt=1,
        lengths=(1,) * count,
        segments=(((1, 1),),) * count,
        finish_reasons=("stop",) * count,
        rewards=rewards,
        reasons=("equal",) * count,
        text_lengths=tuple(map(len, texts)),
    )
    return message, {"texts": np.frombuffer("".join(texts).encode(), "|u1")}


def prompt(answer: str) -> Prompt:
    return Prompt("p", "How many?", answer, (1,))


async def counts_after(share: float, message: GroupMessage, arrays: dict[str, Array]) -> Counter[str]:
    counts: Counter[str] = Counter()
    regrader = Regrader(load_config(overrides=["--actor.regrade_share", str(share)]), counts)
    regrader.sample(message, arrays, prompt("4"))
    running = asyncio.create_task(regrader.run())
    await asyncio.sleep(0.5)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return counts


async def test_a_reward_that_grading_again_does_not_give_is_counted() -> None:
    message = group((1.0, 1.0, 0.0), ("\\boxed{4}", "\\boxed{5}", "\\boxed{5}"))
    assert await counts_after(1.0, *message) == {"regraded": 3, "regrade_disagreements": 1}


async def test_a_share_of_zero_grades_nothing() -> None:
    assert await counts_after(0.0, *group((1.0,), ("\\boxed{5}",))) == {}


async def test_a_regrader_whose_workers_die_is_named_counted_and_begins_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    counts: Counter[str] = Counter()
    regrader = Regrader(load_config(overrides=["--actor.regrade_share", "1.0"]), counts)
    # What needs algebra goes to a worker.
    regrader.sample(*group((1.0,), ("\\boxed{\\frac{n(n+1)}{2}}",)), prompt("\\sum_{k=1}^{n} k"))
    running = asyncio.create_task(regrader.run())
    try:
        async with asyncio.timeout(60.0):
            while not counts["regrader_restarts"]:
                for child in psutil.Process().children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        if "spawn_main" in " ".join(child.cmdline()):
                            child.kill()
                await asyncio.sleep(0.02)
            regrader.sample(*group((1.0,), ("\\boxed{4}",)), prompt("4"))
            while not counts["regraded"]:  # noqa: ASYNC110 - a count has no event
                await asyncio.sleep(0.02)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert "the regrader failed, training goes on: GradingError" in caplog.text
