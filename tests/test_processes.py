"""Children of the services: they die with their parent, and end when asked."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from dcpo_async.errors import ConfigError
from dcpo_async.processes import bound_log, last_lines, module_argv, private_folder, spawn, stop
from dcpo_async.transport.security import check_address

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


async def test_a_start_that_is_cancelled_leaves_no_child_and_ends(tmp_path: Path) -> None:
    starting = asyncio.create_task(spawn(module_argv(*SLEEP), tmp_path / "child.log"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    starting.cancel()
    await asyncio.wait_for(asyncio.gather(starting, return_exceptions=True), 30)
    assert starting.cancelled()


def test_the_temporary_folder_of_a_process_that_was_killed_is_removed_by_the_next(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path_factory.mktemp("t")
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    program = (
        "from dcpo_async.processes import private_folder; import os, signal\n"
        "with private_folder('learner') as folder:\n    print(folder, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    argv, environment = [sys.executable, "-c", program], {**os.environ, "TMPDIR": str(place)}
    left = Path(subprocess.run(argv, env=environment, capture_output=True, text=True, check=False).stdout.strip())
    assert left.is_dir()
    with private_folder("learner") as first, private_folder("actor") as second:
        assert not left.exists()
        assert first.is_dir()
        assert second.stat().st_mode & 0o777 == 0o700
    assert not list(first.parent.iterdir())


def test_a_log_that_is_too_large_is_moved_and_its_writer_goes_on(tmp_path: Path) -> None:
    log_file = tmp_path / "part.log"
    with log_file.open("ab", buffering=0) as writer:
        writer.write(b"old " * 100)
        bound_log(log_file, max_bytes=100)
        writer.write(b"new")
    assert log_file.read_text() == "new"
    assert (tmp_path / "part.log.1").stat().st_size == 400


@pytest.mark.parametrize("kind", ["missing", "a file", "long"])
def test_a_folder_of_temporary_files_that_cannot_serve_is_refused_by_the_name_of_its_variable(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / ("x" * 100 if kind == "long" else kind)
    if kind == "a file":
        place.touch()
    if kind == "long":
        place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", str(place) if kind == "long" else None)
    with pytest.raises(ConfigError, match=f"^TMPDIR={re.escape(str(place))} "), private_folder("learner"):
        pass
    assert kind != "long" or not list(place.glob("*/*"))


def test_a_folder_of_temporary_files_with_a_space_serves(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path_factory.mktemp("of mine")
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with private_folder("learner") as folder:
        assert folder.parent.parent == place
        check_address(f"ipc://{folder}/ranks", has_keys=False, insecure=False)
