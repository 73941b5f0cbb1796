"""Parts of the services: started again when they fail or are late, and ended when asked."""

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dcpo_async.errors import ConfigError, EngineError
from dcpo_async.processes import last_lines
from dcpo_async.supervision import Child, keep_running
from tests.test_processes import wait_for_text, wait_until_dead


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
    child = counting(tmp_path, "import os; os.write(1, b'pid %d\\n' % os.getpid()); time.sleep(60)")
    keeping = asyncio.create_task(keep_running(child))
    await wait_for_text(child.log_file, "pid")
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    assert await asyncio.to_thread(wait_until_dead, int(last_lines(child.log_file, 1).split()[1]))


async def test_a_child_that_asks_for_a_new_start_gets_it_at_once_and_has_not_failed(tmp_path: Path) -> None:
    renews = "sys.exit(4 if len(open({!r}).readlines()) < 5 else 0)".format(str(tmp_path / "starts"))
    child = replace(counting(tmp_path, renews), renewing_codes=(4,), pause_seconds=60.0, max_failures=0)
    await asyncio.wait_for(keep_running(child), 50)
    assert num_starts(tmp_path) == 5


async def test_what_an_earlier_start_said_is_no_reason_of_a_later_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    says = "len(open({!r}).readlines()) == 1 and print('out of memory', flush=True); sys.exit(1)"
    child = replace(counting(tmp_path, says.format(str(tmp_path / "starts"))), max_failures=2)
    with pytest.raises(EngineError, match="failed 3 times in a row: it said nothing"):
        await keep_running(child)
    ends = [record.getMessage().rpartition(": ")[2] for record in caplog.records if "started again" in record.message]
    assert ends == ["out of memory", "it said nothing"]
    marks = [line for line in child.log_file.read_text().splitlines() if line.startswith("--- started 2")]
    assert len(marks) == 3


async def test_each_failure_in_a_row_doubles_the_pause(tmp_path: Path) -> None:
    child = replace(counting(tmp_path, "sys.exit(1)"), pause_seconds=0.2, max_failures=3)
    began = asyncio.get_running_loop().time()
    with pytest.raises(EngineError):
        await keep_running(child)
    assert asyncio.get_running_loop().time() - began >= 0.2 + 0.4 + 0.8


# ---- several processes, and signs of progress

SIGN = "from dcpo_async.supervision import sign_of_progress as sign; import os; number = os.environ['NUMBER']; "


def of_two(folder: Path, program: str) -> Child:
    """Two processes that give signs: each is told its number. They share a log: a line is to be written at once."""
    child = counting(folder, SIGN + program)
    members = [{"NUMBER": "0"}, {"NUMBER": "1"}]
    return replace(child, members=lambda: members, signs=folder, max_failures=0, start_seconds=60.0)


async def test_when_one_process_of_a_part_fails_the_others_end_with_it(tmp_path: Path) -> None:
    program = "os.write(1, b'pid %d\\n' % os.getpid()); time.sleep(1) if number == '0' else time.sleep(60); sys.exit(3)"
    with pytest.raises(EngineError, match="failed 1 times in a row"):
        await keep_running(of_two(tmp_path, program))
    pids = [int(line.split()[1]) for line in last_lines(tmp_path / "child.log").splitlines()]
    assert len(pids) == 2
    assert all([await asyncio.to_thread(wait_until_dead, pid) for pid in pids])


async def test_a_part_has_ended_well_when_all_its_processes_have(tmp_path: Path) -> None:
    await keep_running(of_two(tmp_path, "time.sleep(float(number))"))
    assert num_starts(tmp_path) == 2


async def test_a_process_that_stands_still_is_named_and_killed(tmp_path: Path) -> None:
    stop_itself = "number == '1' and os.kill(os.getpid(), 19); "
    program = f"sign(f'number {{number}} in step 7', 2.0); {stop_itself}time.sleep(60)"
    with pytest.raises(EngineError, match=r"number 1 in step 7: no progress for \d+ s and the process is stopped"):
        await asyncio.wait_for(keep_running(of_two(tmp_path, program)), 60)


async def test_who_has_come_less_far_is_named_not_who_waits_for_it(tmp_path: Path) -> None:
    program = "sign(f'number {number} begins', 3.0); number == '0' and sign('number 0 waits', 3.0); time.sleep(60)"
    with pytest.raises(EngineError, match="in a row: number 1 begins: no progress for"):
        await asyncio.wait_for(keep_running(of_two(tmp_path, program)), 60)


async def test_who_goes_on_is_not_late(tmp_path: Path) -> None:
    await keep_running(of_two(tmp_path, "[(sign('working', 10.0), time.sleep(0.5)) for _ in range(8)]"))


async def test_who_has_ended_well_is_not_late(tmp_path: Path) -> None:
    program = "sign('working', 1.0); [(time.sleep(0.5), sign('working', 30.0)) for _ in range(8 * (number == '0'))]"
    await keep_running(of_two(tmp_path, program))


async def test_a_child_that_fails_while_it_stops_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = "import signal; signal.signal(signal.SIGTERM, lambda *_: (print('no room', flush=True), sys.exit(1))); "
    child, stopping = counting(tmp_path, f"{asked}print('awake', flush=True); time.sleep(60)"), asyncio.Event()
    keeping = asyncio.create_task(keep_running(child, stopping))
    await wait_for_text(child.log_file, "awake")
    stopping.set()
    await asyncio.wait_for(keeping, 20)
    assert "the child ended with code 1: no room" in caplog.text


async def test_a_process_that_never_gives_a_sign_is_late_after_its_start(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="the start of the child as process"):
        await keep_running(replace(of_two(tmp_path, "time.sleep(60)"), start_seconds=0.5))


async def test_a_part_that_is_lost_ends_and_is_started_again_for_that_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def lost() -> str:
        return "its machine is gone" if num_starts(tmp_path) == 1 else ""

    child = replace(counting(tmp_path, ""), argv=lambda: waiting_once(tmp_path), lost=lost)
    await keep_running(child)
    assert num_starts(tmp_path) == 2
    assert "the child ended with code -9 and is started again: its machine is gone" in caplog.text


def waiting_once(folder: Path) -> list[str]:
    """Adds a line to `starts`, and waits for long at its first start alone."""
    starts = str(folder / "starts")
    program = f"import time; open({starts!r}, 'a').write('x\\n'); "
    return [sys.executable, "-c", program + f"time.sleep(60 if len(open({starts!r}).readlines()) == 1 else 0)"]


async def test_a_start_waits_until_it_may_be_and_a_stop_does_not_wait_for_it(tmp_path: Path) -> None:
    may_start, stopping = asyncio.Event(), asyncio.Event()

    async def ready() -> None:
        await may_start.wait()

    child = replace(counting(tmp_path, ""), ready=ready)
    running = asyncio.create_task(keep_running(child, stopping))
    await asyncio.sleep(0.1)
    assert num_starts(tmp_path) == 0
    may_start.set()
    await running
    assert num_starts(tmp_path) == 1
    may_start.clear()
    running = asyncio.create_task(keep_running(child, stopping))
    await asyncio.sleep(0)
    stopping.set()
    await running
    assert num_starts(tmp_path) == 1
