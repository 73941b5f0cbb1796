"""Symbolic comparison in an interpreter of its own: bounded, restarted, usable from any thread."""

import subprocess
import sys
import threading
from collections.abc import Iterator

import psutil
import pytest

from dcpo_async.grading import Verdict
from dcpo_async.grading.algebra import Algebra

INTEGRAL = (r"\int_0^x 2t\,dt + 1", "x^2+1")
ENDLESS = (r"\sum_{n=1}^{10^{10}} \frac{1}{n^2+1}", "x^2+1")


@pytest.fixture(scope="module")
def algebra() -> Iterator[Algebra]:
    algebra = Algebra(timeout_seconds=2.0)
    yield algebra
    algebra.close()


def test_an_integral_is_compared_with_its_value(algebra: Algebra) -> None:
    assert algebra.verdict(*INTEGRAL) == Verdict(True, INTEGRAL[0], "equivalent")
    assert algebra.verdict(INTEGRAL[0], "x^2") == Verdict(False, INTEGRAL[0], "different")


@pytest.mark.system
def test_an_answer_that_takes_too_long_is_given_up_and_the_next_one_gets_its_verdict(algebra: Algebra) -> None:
    assert algebra.verdict(*ENDLESS) == Verdict(False, ENDLESS[0], "timeout")
    assert algebra.verdict(*INTEGRAL).reason == "equivalent"


def test_threads_take_turns(algebra: Algebra) -> None:
    verdicts: list[Verdict] = []
    threads = [threading.Thread(target=lambda: verdicts.append(algebra.verdict(*INTEGRAL))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [verdict.reason for verdict in verdicts] == ["equivalent"] * 4


def test_an_interpreter_that_was_killed_is_started_again(algebra: Algebra) -> None:
    algebra.verdict(*INTEGRAL)
    child = next(process for process in psutil.Process().children() if "grading.worker" in " ".join(process.cmdline()))
    child.kill()
    child.wait()
    assert algebra.verdict(*INTEGRAL).reason == "equivalent"


def test_without_an_interpreter_the_answer_has_crashed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert Algebra().verdict(*INTEGRAL) == Verdict(False, INTEGRAL[0], "crashed")


def test_it_ends_with_the_process_that_asked() -> None:
    program = (
        "import psutil; from dcpo_async.grading import grade\n"
        rf"print(grade('\\boxed{{{INTEGRAL[0]}}}'.replace('\\\\', '\\'), '{INTEGRAL[1]}').reason)" + "\n"
        "print(*[child.pid for child in psutil.Process().children()])"
    )
    lines = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    reason, pids = lines.stdout.splitlines()
    assert reason == "equivalent"
    assert pids.split()
    assert not any(psutil.pid_exists(int(pid)) for pid in pids.split())
