"""Children of the services: they die with their parent, and end when asked."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from dcpo_async.processes import bound_log, last_lines, module_argv, private_folder, spawn, stop

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


# ---- what is left behind


def test_a_private_folder_is_the_users_alone_and_goes_with_its_process(temporary: Path) -> None:
    with private_folder("learner") as folder:
        assert folder.is_relative_to(temporary)
        assert [path.stat().st_mode & 0o777 for path in (folder, folder.parent)] == [0o700, 0o700]
        with private_folder("learner") as other:
            assert folder.exists()
            assert other != folder
    assert not folder.exists()


def test_the_folder_of_a_killed_process_is_removed_at_the_next_start(temporary: Path) -> None:
    program = (
        "import time; from dcpo_async.processes import private_folder\n"
        "with private_folder('learner') as folder: print(folder, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        left = Path(owner.stdout.readline().strip())
        owner.kill()
    assert left.is_relative_to(temporary)
    assert left.exists()
    with private_folder("actor", is_kept=True) as kept:
        assert not left.exists()
    assert kept.exists()
    with private_folder("actor"):
        assert not kept.exists()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_a_log_that_is_too_large_becomes_the_one_before(tmp_path: Path) -> None:
    log_file = tmp_path / "part.log"
    with log_file.open("ab", buffering=0) as log:
        log.write(b"old\n" * 100)
        bound_log(log_file, max_bytes=1000)
        assert log_file.stat().st_size == 400
        bound_log(log_file, max_bytes=300)
        log.write(b"new\n")
    assert log_file.read_text() == "new\n"
    assert (tmp_path / "part.log.1").read_text() == "old\n" * 100
