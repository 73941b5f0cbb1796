"""Grading in worker processes that may hang, crash or be killed."""

import asyncio
import multiprocessing
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dcpo_async.errors import GradingError
from dcpo_async.grading import GradingPool, Verdict

HANGS = r"\boxed{\sum_{k=1}^{n} 10^{10^{10}}}"
NEEDS_ALGEBRA = r"\boxed{\sum_{k=1}^{n} k}"
CLOSED_FORM = r"\frac{n(n+1)}{2}"
EQUIVALENT = Verdict(True, r"\sum_{k=1}^{n} k", "equivalent")


@pytest.fixture
def pool() -> Iterator[GradingPool]:
    pool = GradingPool(num_workers=1, timeout_seconds=1.0)
    yield pool
    pool.close()


def worker_processes() -> list[psutil.Process]:
    return [psutil.Process(child.pid) for child in multiprocessing.active_children()]


async def ticks_during(task: "asyncio.Task[list[Verdict]]") -> int:
    ticks = 0
    while not task.done():
        await asyncio.sleep(0.01)
        ticks += 1
    return ticks


async def test_hostile_answers_time_out_beside_a_free_event_loop_and_the_pool_grades_on(
    pool: GradingPool,
) -> None:
    responses = [
        HANGS,
        r"\boxed{\sum_{k=1}^{n} 100000000!}",
        r"\boxed{" + "{" * 2**20,
        NEEDS_ALGEBRA,
        r"\boxed{x}",
        "no",
    ]
    grading = asyncio.create_task(pool.grade_many(responses, CLOSED_FORM))
    assert await ticks_during(grading) > 20
    assert await grading == [
        Verdict(False, r"\sum_{k=1}^{n} 10^{10^{10}}", "timeout"),
        Verdict(False, r"\sum_{k=1}^{n} 100000000!", "timeout"),
        Verdict(False, None, "no_answer"),
        EQUIVALENT,
        Verdict(False, "x", "different"),
        Verdict(False, None, "no_answer"),
    ]


async def test_common_answers_are_graded_without_a_process_hop(pool: GradingPool) -> None:
    worker = worker_processes()[0]
    worker.suspend()
    try:
        async with asyncio.timeout(1.0):
            assert (await pool.grade(r"\boxed{1,000}", "1000")).correct is True
            assert (await pool.grade(r"\boxed{1/2}", "0.25")).correct is False
    finally:
        worker.resume()


async def test_a_killed_worker_costs_no_answer_its_verdict(pool: GradingPool) -> None:
    assert await pool.grade(NEEDS_ALGEBRA, CLOSED_FORM) == EQUIVALENT
    worker_processes()[0].kill()
    await asyncio.sleep(0.5)
    assert await pool.grade(NEEDS_ALGEBRA, CLOSED_FORM) == EQUIVALENT


async def test_an_answer_whose_worker_dies_each_time_has_crashed() -> None:
    pool = GradingPool(num_workers=1, timeout_seconds=30.0)
    await pool.grade(NEEDS_ALGEBRA, CLOSED_FORM)
    startup_seconds = worker_processes()[0].cpu_times().user
    grading = asyncio.create_task(pool.grade(HANGS, CLOSED_FORM))
    while not grading.done():
        await asyncio.sleep(0.05)
        for worker in worker_processes():
            if worker.cpu_times().user > startup_seconds + 1.0:
                worker.kill()
    assert await grading == Verdict(False, r"\sum_{k=1}^{n} 10^{10^{10}}", "crashed")
    pool.close()


async def test_workers_that_cannot_start_are_an_error_and_no_verdict() -> None:
    pool = GradingPool(num_workers=1, timeout_seconds=1.0)
    grading = asyncio.create_task(pool.grade(NEEDS_ALGEBRA, CLOSED_FORM))
    while not grading.done():
        for worker in worker_processes():
            worker.kill()
        await asyncio.sleep(0.02)
    with pytest.raises(GradingError, match="failed 2 times in a row"):
        await grading
    pool.close()


async def test_giving_up_on_an_answer_frees_its_worker() -> None:
    pool = GradingPool(num_workers=1, timeout_seconds=60.0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2.0):
            await pool.grade(HANGS, CLOSED_FORM)
    async with asyncio.timeout(20.0):
        assert await pool.grade(NEEDS_ALGEBRA, CLOSED_FORM) == EQUIVALENT
    pool.close()


async def test_a_closed_pool_has_no_workers_and_refuses_to_grade(pool: GradingPool) -> None:
    assert len(worker_processes()) == 1
    in_the_making = [asyncio.create_task(pool.grade(NEEDS_ALGEBRA, CLOSED_FORM)) for _ in range(2)]
    await asyncio.sleep(0.01)
    pool.close()
    pool.close()
    assert worker_processes() == []
    for grading in [*in_the_making, asyncio.create_task(pool.grade(NEEDS_ALGEBRA, CLOSED_FORM))]:
        with pytest.raises(GradingError, match="closed"):
            await grading


ORPHANING = r"""
import asyncio, multiprocessing, os, signal
from dcpo_async.grading import GradingPool

async def main():
    pool = GradingPool(num_workers=2, timeout_seconds=2.0)
    await pool.grade(r"\boxed{\sum_{k=1}^{n} k}", r"\frac{n(n+1)}{2}")
    hanging = asyncio.create_task(pool.grade(r"\boxed{\sum_{k=1}^{n} 10^{10^{10}}}", r"\frac{n(n+1)}{2}"))
    await asyncio.sleep(0.5)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_busy_and_idle_workers_die_with_their_parent() -> None:
    parent = subprocess.run([sys.executable, "-c", ORPHANING], capture_output=True, text=True, timeout=60)
    pids = [int(pid) for pid in parent.stdout.split()]
    assert (parent.returncode, len(pids)) == (-signal.SIGKILL, 2)
    orphans = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    _, alive = psutil.wait_procs(orphans, timeout=10)
    assert alive == []


async def test_workers_read_and_write_nothing_of_the_terminal(pool: GradingPool) -> None:
    await pool.grade(NEEDS_ALGEBRA, CLOSED_FORM)
    streams = Path(f"/proc/{worker_processes()[0].pid}/fd")
    assert {str((streams / number).readlink()) for number in "012"} == {"/dev/null"}
