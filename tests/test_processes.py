"""Children of the services: they die with their parent, and end when asked."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dcpo_async.errors import ConfigError, EngineError
from dcpo_async.processes import Child, keep_running, last_lines, module_argv, spawn, stop

SLEEP = ("timeit", "-n", "1", "-r", "1", "-s", "import time", "print('awake', flush=True); time.sleep(60)")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_dead(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_alive(pid)


async def wait_for_text(log_file: Path, text: str) -> None:
    for _ in range(1500):
        if text in last_lines(log_file):
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{text!r} did not come within 30 s")


def test_a_child_dies_when_its_parent_is_killed() -> None:
    program = (
        "import subprocess, time; from dcpo_async.processes import module_argv; "
        f"child = subprocess.Popen(module_argv(*{SLEEP!r}), stdout=subprocess.PIPE); "
        "child.stdout.readline(); print(child.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_alive(child)
        parent.send_signal(signal.SIGKILL)
    assert wait_until_dead(child)


def test_a_child_whose_parent_is_already_gone_does_not_begin() -> None:
    argv = module_argv(*SLEEP)
    argv[argv.index(str(os.getpid()))] = "1"
    assert subprocess.run(argv, stdout=subprocess.DEVNULL, timeout=30, check=False).returncode == 1


async def test_a_child_is_asked_to_end_and_its_output_is_kept(tmp_path: Path) -> None:
    log_file = tmp_path / "logs" / "child.log"
    child = await spawn(module_argv(*SLEEP), log_file)
    await wait_for_text(log_file, "awake")
    await stop(child, grace_seconds=10)
    assert child.returncode == -signal.SIGTERM


async def test_a_child_that_does_not_end_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    log_file = tmp_path / "child.log"
    grandchild = f"import subprocess, sys; child = subprocess.Popen([sys.executable, '-m', *{SLEEP!r}]); "
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    child = await spawn(
        [sys.executable, "-c", f"{deaf}{grandchild}print('pid', child.pid, flush=True); child.wait()"], log_file
    )
    await wait_for_text(log_file, "awake")
    pid = int(next(line for line in log_file.read_text().splitlines() if line.startswith("pid")).split()[1])
    await stop(child, grace_seconds=0.1)
    assert child.returncode == -signal.SIGKILL
    assert await asyncio.to_thread(wait_until_dead, pid)


def test_the_last_lines_of_a_long_log_are_read_without_the_rest(tmp_path: Path) -> None:
    log_file = tmp_path / "long.log"
    log_file.write_text("x" * 200_000 + "\n" + "".join(f"line {number}\n" for number in range(10)))
    assert last_lines(log_file, 2) == "line 8\nline 9"
    assert last_lines(tmp_path / "missing.log") == ""


# ---- children that are started again


def counting(folder: Path, program: str) -> Child:
    """A child that adds a line to `starts` and goes on with a program; nothing counts as progress."""
    begin = f"import sys, time; open({str(folder / 'starts')!r}, 'a').write('x\\n'); "
    log_file = folder / "child.log"
    return Child(
        name="the child",
        argv=lambda: [sys.executable, "-c", begin + program],
        log_file=log_file,
        has_progressed=lambda seconds: False,
        failed=lambda code: last_lines(log_file, 1),
        max_failures=2,
        error=EngineError,
        grace_seconds=5,
    )


def num_starts(folder: Path) -> int:
    path = folder / "starts"
    return len(path.read_text().splitlines()) if path.exists() else 0


async def test_a_child_that_ends_well_is_not_started_again(tmp_path: Path) -> None:
    await keep_running(counting(tmp_path, ""))
    assert num_starts(tmp_path) == 1


async def test_a_child_that_fails_is_started_again_within_its_bound_and_its_end_is_told(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"the child failed 3 times in a row: no memory left; the end of .*child.log"):
        await keep_running(counting(tmp_path, "print('no memory left'); sys.exit(1)"))
    assert num_starts(tmp_path) == 3


async def test_failures_before_progress_are_forgotten(tmp_path: Path) -> None:
    child = replace(counting(tmp_path, "sys.exit(1)"), has_progressed=lambda seconds: num_starts(tmp_path) == 2)
    with pytest.raises(EngineError):
        await keep_running(child)
    assert num_starts(tmp_path) == 4


async def test_each_new_start_is_told_and_the_last_failure_is_none(tmp_path: Path) -> None:
    told: list[int] = []
    child = replace(counting(tmp_path, "sys.exit(1)"), restarting=lambda: told.append(num_starts(tmp_path)))
    with pytest.raises(EngineError):
        await keep_running(child)
    assert told == [1, 2]


async def test_a_child_whose_codes_mean_something_else_is_started_again(tmp_path: Path) -> None:
    with pytest.raises(EngineError):
        await keep_running(replace(counting(tmp_path, "sys.exit(2)"), final_codes=()))
    assert num_starts(tmp_path) == 3


async def test_a_child_that_asks_for_a_new_start_gets_it_at_once_and_has_not_failed(tmp_path: Path) -> None:
    renews = "sys.exit(4 if len(open({!r}).readlines()) < 5 else 0)".format(str(tmp_path / "starts"))
    child = replace(counting(tmp_path, renews), renewing_codes=(4,), pause_seconds=60.0, max_failures=0)
    await asyncio.wait_for(keep_running(child), 50)
    assert num_starts(tmp_path) == 5


async def test_each_failure_in_a_row_doubles_the_pause(tmp_path: Path) -> None:
    child = replace(counting(tmp_path, "sys.exit(1)"), pause_seconds=0.2, max_failures=3)
    began = asyncio.get_running_loop().time()
    with pytest.raises(EngineError):
        await keep_running(child)
    assert asyncio.get_running_loop().time() - began >= 0.2 + 0.4 + 0.8


async def test_a_stop_during_the_pause_ends_the_supervision(tmp_path: Path) -> None:
    child, stopping = replace(counting(tmp_path, "sys.exit(1)"), pause_seconds=60.0), asyncio.Event()
    keeping = asyncio.create_task(keep_running(replace(child, restarting=stopping.set), stopping))
    await asyncio.wait_for(keeping, 20)
    assert num_starts(tmp_path) == 1


async def test_a_child_that_no_new_start_can_help_ends_at_once_with_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^no such model$"):
        await keep_running(counting(tmp_path, "print('no such model'); sys.exit(2)"))
    assert num_starts(tmp_path) == 1


async def test_an_endless_child_that_ends_has_failed(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="failed 3 times in a row"):
        await keep_running(replace(counting(tmp_path, ""), is_endless=True))


async def test_a_stop_is_passed_on_and_the_child_may_end_in_its_own_way(tmp_path: Path) -> None:
    asked = "import signal; signal.signal(signal.SIGTERM, lambda *_: (print('drained', flush=True), sys.exit(1))); "
    child, stopping = counting(tmp_path, f"{asked}print('awake', flush=True); time.sleep(60)"), asyncio.Event()
    keeping = asyncio.create_task(keep_running(child, stopping))
    await wait_for_text(child.log_file, "awake")
    stopping.set()
    await asyncio.wait_for(keeping, 20)
    assert last_lines(child.log_file, 1) == "drained"
    assert num_starts(tmp_path) == 1


async def test_a_cancelled_supervision_leaves_no_child(tmp_path: Path) -> None:
    child = counting(tmp_path, "import os; print('pid', os.getpid(), flush=True); time.sleep(60)")
    keeping = asyncio.create_task(keep_running(child))
    await wait_for_text(child.log_file, "pid")
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    assert await asyncio.to_thread(wait_until_dead, int(last_lines(child.log_file, 1).split()[1]))
