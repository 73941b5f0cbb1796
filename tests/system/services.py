"""Real services as subprocesses: started on free ports, watched through the files they write, ended by pid."""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from dcpo_async.processes import last_lines
from tests import tmpfs

SETTINGS = """
folder = "{folder}/run"
seed = 7
[network]
listen = "tcp://127.0.0.1:{port}"
[model]
path = "{model}"
gradient_checkpointing = false
[data]
source = "{folder}/data.jsonl"
max_prompt_tokens = 32
system_prompt = ""
[sampling]
group_size = 4
max_response_tokens = 16
[grading]
workers = 1
[training]
groups_per_step = 4
learning_rate = 1e-3
warmup_steps = 2
zero_stage = 0
[actor]
groups_in_flight = 8
[tracking]
sinks = []
"""


class Service:
    """A launcher that a test has started."""

    def __init__(self, log_file: Path, *argv: str, within: Sequence[str] = ()) -> None:
        self.name, self.log_file = argv[0], log_file
        with log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*within, sys.executable, "-m", *argv],
                stdout=log,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            )

    @property
    def code(self) -> int | None:
        """Exit code; None while it runs."""
        return self.process.poll()

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self.log_file.read_text()

    def child(self, module: str) -> psutil.Process | None:
        """The first descendant that runs a module, such as `learner.trainer.rank`."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            if module in command_line(process):
                return process
        return None

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


class Services:
    """A learner and its actors around one folder; whatever still runs at the end of the block is killed, by pid."""

    def __init__(self, folder: Path, model: Path, num_problems: int = 40) -> None:
        self.folder, self.run, self.port = folder, folder / "run", two_free_ports()
        self.config = folder / "run.toml"
        self.config.write_text(SETTINGS.format(folder=folder, port=self.port, model=model))
        self.services: list[Service] = []
        # Words before those of a service that is started, such as `ip netns exec NAME`.
        self.within: Sequence[str] = ()
        write_problems(folder / "data.jsonl", num_problems)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()

    def kill(self) -> None:
        """Kill whatever still runs."""
        for service in self.services:
            # The children end with their launcher.
            service.process.kill()
            service.process.wait()

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def start_learner(self, *words: str) -> Service:
        return self._start(self.folder / "learner.log", "learner.launcher", str(self.config), *words)

    def start_actor(self, *words: str) -> Service:
        """Start an actor; each has a folder of logs of its own."""
        folder = self.folder / f"actor-{len(self.services)}"
        folder.mkdir()
        argv = ["actor.launcher", "--engine", "scripted", "--learner", self.address, "--logs", str(folder), *words]
        return self._start(folder / "actor.log", *argv)

    def start(self, *argv: str) -> Service:
        """Start any other module."""
        return self._start(self.folder / f"{argv[0]}-{len(self.services)}.log", *argv)

    def _start(self, log_file: Path, *argv: str) -> Service:
        self.services.append(Service(log_file, *argv, within=self.within))
        return self.services[-1]

    # ---- waiting

    def until(self, what: str, condition: Callable[[], Any], seconds: float = 100.0) -> Any:
        """Wait for a condition and return what it gave; fails with the ends of all logs when it does not come."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            broken = [service for service in self.services if service.code not in (None, 0, -signal.SIGKILL)]
            if broken or time.monotonic() > deadline:
                why = f"exit code {broken[0].code} of {broken[0].name}" if broken else f"{seconds:g} s over"
                raise AssertionError(f"waiting for {what}: {why}\n{self.log_ends()}")
            time.sleep(0.02)
        return found

    def ends_well(self, service: Service, seconds: float = 100.0) -> None:
        """Wait for the service's end by itself with exit code 0."""
        self.until(f"the end of {service.name}", lambda: service.code is not None, seconds)
        assert service.code == 0, self.log_ends()

    def until_step(self, step: int) -> None:
        self.until(f"step {step}", lambda: len(self.metrics()) >= step)

    def log_ends(self) -> str:
        logs = [path for path in sorted(self.folder.rglob("*.log")) if "ledger" not in path.parts]
        return "\n".join(f"==== {path}\n{last_lines(path, 12)}" for path in logs)

    # ---- what the run folder says

    def status(self) -> dict[str, Any]:
        """status.json; empty before the learner has written it."""
        path = self.run / "status.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def metrics(self) -> list[dict[str, float]]:
        """Every whole line of metrics.jsonl, in the order of writing."""
        path = self.run / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def ledger(self, query: str) -> list[tuple[Any, ...]]:
        """Rows of the ledger, as any tool reads them beside a learner."""
        connection = sqlite3.connect(self.run / "ledger" / "ledger.sqlite")
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    def exported_weights(self) -> bytes:
        return (self.run / "export" / "model.safetensors").read_bytes()


@contextlib.contextmanager
def small_disk(services: Services) -> Iterator[bool]:
    """Put a disk of 64 MB under the run's folder until its services end here; False where that is not permitted."""
    with tmpfs.small_disk(services.run, 64) as is_mounted:
        try:
            yield is_mounted
        finally:
            services.kill()


def fill(path: Path) -> None:
    """Leave 1 MB on the disk of a file that is made for it."""
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(path.parent).free - 1_000_000)


def write_problems(path: Path, count: int) -> None:
    """Sums as a data set; the problems of a longer one begin with those of a shorter one."""
    lines = [json.dumps({"problem": f"{i}+{i + 1}=", "answer": str(2 * i + 1)}) for i in range(count)]
    path.write_text("\n".join(lines) + "\n")


def two_free_ports() -> int:
    """A port that is free together with the next one, outside the range from which the kernel takes its own."""
    for _ in range(1000):
        port = random.randrange(20_000, 32_000)
        if is_free(port) and is_free(port + 1):
            return port
    raise RuntimeError("no two free ports in a row")


def is_free(port: int) -> bool:
    with socket.socket() as listener:
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; one that waits for its parent to notice its end does not."""
    return list(_alive(processes))


def _alive(processes: list[psutil.Process]) -> Iterator[psutil.Process]:
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except psutil.NoSuchProcess:
            continue


def command_line(process: psutil.Process) -> list[str]:
    """A process's words; empty when it has just ended."""
    try:
        words: list[str] = process.cmdline()
    except psutil.Error:
        return []
    return words


def assert_counted_once(services: Services) -> None:
    """Recount the ledger from its groups: every visit once, in the statistics and in the steps."""
    rows = services.ledger(
        "SELECT v.prompt_id, v.visit, v.state, g.rewards FROM visits v LEFT JOIN groups g ON g.position = v.position"
    )
    names = [(prompt, visit) for prompt, visit, _, _ in rows]
    assert len(set(names)) == len(names)
    assert all((rewards is not None) == (state in ("accepted", "too_old")) for _, _, state, rewards in rows)
    expected: dict[str, list[int]] = {}
    for prompt, _, _, rewards in rows:
        if rewards is None:
            continue
        sums = expected.setdefault(prompt, [0, 0, 0, 0])
        nanos = [round(float(reward) * 1_000_000_000) for reward in rewards.split()]
        added = (1, len(nanos), sum(nanos), sum(nano * nano for nano in nanos))
        expected[prompt] = [have + more for have, more in zip(sums, added, strict=True)]
    found = services.ledger("SELECT prompt_id, visits, count, sum_nano, sum_sq_nano FROM prompt_stats")
    assert {prompt: [*map(int, numbers)] for prompt, *numbers in found} == expected
    trained = [position for (position,) in services.ledger("SELECT position FROM steps")]
    assert len(set(trained)) == len(trained)
