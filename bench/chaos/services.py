"""A learner and a few actors as real processes, which may be killed at any moment and are started again."""

import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from dcpo_async.config.loading import load_config
from dcpo_async.demo.services import free_address
from dcpo_async.processes import last_lines

INJECT = Path(__file__).parent / "inject"
PARTS = {
    "rank": "learner.trainer.rank",
    "publisher": "learner.publisher",
    "weight server": "learner.weights.server",
    "engine process": "actor.engine_process",
    "relay": "actor.weights.relay",
}
"""Module of each child, by its name for people."""
NUM_ACTORS, WORKERS = 2, 2
GROUP_SIZE, GROUPS_PER_STEP = 4, 4


@dataclass(slots=True)
class Service:
    """A launcher and the environment that its next start gets."""

    name: str
    words: Sequence[str]
    log_file: Path
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    ends: list[int] = field(default_factory=list)

    def start(self, environment: Mapping[str, str]) -> None:
        """Start it; what it says is appended to its log."""
        self.starts += 1
        with self.log_file.open("ab") as log:
            argv = [sys.executable, "-m", *self.words]
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, env={**os.environ, **environment})

    @property
    def is_up(self) -> bool:
        """Whether its launcher runs; its end is written down once."""
        if self.process is None:
            return False
        if (code := self.process.poll()) is None:
            return True
        self.ends.append(code)
        self.process = None
        return False

    def kill(self) -> None:
        """SIGKILL to the launcher alone: its children end with it by themselves."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


class Fleet:
    """The services of one run around a folder of their own.

    Args:
        folder: for configuration, logs, run folder and records; it must be empty.
        model: folder of a tiny model.
        words: settings over the ones here.
        engine: of the actors, scripted or vllm.
        seed: of the run, and of what is drawn here.
        of_actor: words for each actor alone; there are as many actors.
    """

    def __init__(
        self,
        folder: Path,
        model: Path,
        words: Sequence[str],
        engine: str,
        seed: int,
        of_actor: Sequence[Sequence[str]] = ((),) * NUM_ACTORS,
    ) -> None:
        self.folder, self.run, self._random = folder, folder / "run", random.Random(seed)
        self.acks, self.deaths = folder / "acks", folder / "deaths"
        self.acks.mkdir(parents=True)
        problems = folder / "problems.jsonl"
        lines = [json.dumps({"problem": f"{i}+{i + 1}=", "answer": str(2 * i + 1)}) for i in range(60)]
        problems.write_text("\n".join(lines) + "\n")
        address = free_address()
        self.words = [
            *("--folder", str(self.run), "--seed", str(seed), "--model.path", str(model)),
            *("--model.gradient_checkpointing", "false", "--network.listen", address, "--data.source", str(problems)),
            *("--data.max_prompt_tokens", "32", "--data.system_prompt", "", "--sampling.group_size", str(GROUP_SIZE)),
            *("--sampling.max_response_tokens", "16", "--grading.workers", "1", "--training.zero_stage", "0"),
            *("--training.groups_per_step", str(GROUPS_PER_STEP), "--training.learning_rate", "1e-3"),
            *("--actor.groups_in_flight", "8", *words),
        ]
        self.config = load_config(None, self.words)
        self.learner = self._learner(())
        self.actors = [self._actor(index, engine, address, more) for index, more in enumerate(of_actor)]

    def _learner(self, more: Sequence[str]) -> Service:
        words = ["learner.launcher", "--workers", "1", *self.words, *more]
        return Service("learner", words, self.folder / "learner.log")

    def _actor(self, index: int, engine: str, address: str, more: Sequence[str]) -> Service:
        logs = self.folder / f"actor-{index}"
        words = ["actor.launcher", "--engine", engine, "--learner", address, "--workers", str(WORKERS)]
        words += ["--logs", str(logs), *(("--kv-cache-gib", "0.1") if engine == "vllm" else ()), *more]
        return Service(f"actor {index}", words, self.folder / f"actor-{index}.log")

    @property
    def services(self) -> list[Service]:
        """All of them, the learner first."""
        return [self.learner, *self.actors]

    def environment(self, point: str | None) -> dict[str, str]:
        """Of a service that writes down acknowledgements, and dies at a point if one is given."""
        common = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "CHAOS_ACKS": str(self.acks)}
        path = os.pathsep.join(filter(None, (str(INJECT), os.environ.get("PYTHONPATH", ""))))
        dying = {"CHAOS_DIE_AT": point, "CHAOS_DEATHS": str(self.deaths)} if point else {}
        return {**common, "PYTHONPATH": path, **dying}

    def parts(self) -> Iterator[tuple[str, psutil.Process]]:
        """Every process that may be killed, with its name for people."""
        for service in self.services:
            if service.process is None:
                continue
            yield service.name, psutil.Process(service.process.pid)
            for child in _children(service.process.pid):
                if (name := _name_of(child)) is not None:
                    yield name, child

    def counted(self) -> int:
        """Groups that the learner has counted, by its status; 0 before it has written one."""
        return self._in_status("groups_counted")

    def steps(self) -> int:
        """Optimizer steps that the learner has taken, by its status."""
        return self._in_status("step")

    def trained(self) -> int:
        """Steps that the ledger has a batch of; a learner that has only just started does not know in its status.

        0 where every learner was killed before it had a ledger, as happens to the first ones on a busy machine.
        """
        ledger = self.run / "ledger" / "ledger.sqlite"
        if not ledger.exists():
            return 0
        with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as connection:
            (step,) = connection.execute("SELECT MAX(step) FROM steps").fetchone()
        return 0 if step is None else int(step) + 1

    def _in_status(self, name: str) -> int:
        try:
            return int(json.loads((self.run / "status.json").read_text())[name])
        except (OSError, ValueError, KeyError):
            return 0

    def num_deaths(self) -> int:
        """Processes that have died at a point."""
        return len(self.deaths.read_text().splitlines()) if self.deaths.exists() else 0

    def finish(self, max_steps: int, seconds: float) -> None:
        """Let the run end by itself, nothing being killed; raises RuntimeError where it does not."""
        for service in self.services:
            service.kill()
        self.learner = self._learner(("--training.max_steps", str(max_steps)))
        for service in self.services:
            service.start(self.environment(None))
        deadline = time.monotonic() + seconds
        while self.learner.is_up:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the run did not end within {seconds:.0f} s: {self.log_ends()}")
            time.sleep(0.2)
        if self.learner.ends[-1] != 0:
            raise RuntimeError(f"the learner ended with {self.learner.ends[-1]}: {self.log_ends()}")

    def close(self) -> None:
        """Kill whatever runs."""
        for service in self.services:
            service.kill()

    def log_ends(self) -> str:
        """The last lines of every log."""
        logs = [*self.folder.glob("*.log"), *self.folder.glob("actor-*/*.log"), *(self.run / "logs").glob("*.log")]
        return "\n".join(f"==== {path}\n{last_lines(path, 8)}" for path in logs)


def _children(pid: int) -> list[psutil.Process]:
    try:
        children: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []
    return children


def _name_of(process: psutil.Process) -> str | None:
    try:
        words = process.cmdline()
    except psutil.Error:
        return None
    return next((name for name, module in PARTS.items() if module in words), None)
