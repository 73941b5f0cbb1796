"""An hour of actors that join, leave and die, and what of the learner grows meanwhile.

The learner is never touched: memory, descriptors and threads of its processes, the files of its run folder by kind, and
what stands in the shared memory are written down, and a line is fitted to each over the second half of the time.
"""

import json
import os
import random
import shutil
import signal
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from bench.chaos.growth import plot_growth
from bench.chaos.recount import Recount, recount
from bench.chaos.services import GROUPS_PER_STEP, Fleet, Service

SAMPLE_SECONDS = 5.0
LEAST_ACTORS = 1
LEAVING_SECONDS = 60.0
KINDS = ("ledger", "weights", "checkpoints", "logs", "metrics.jsonl", "tensorboard", "timing")
"""Files and folders of a run folder."""
SHARED = Path("/dev/shm")
MAX_LAG, INTERVAL = 4, 20


@dataclass(frozen=True, slots=True)
class Soaked:
    """What came of it.

    Attributes:
        happened: joins, leaves and kills of actors.
        samples: seconds since the start, and what was measured then, by name.
        ledger: the recount.
        steps: optimizer steps.
    """

    happened: Counter[str]
    samples: list[dict[str, float]]
    ledger: Recount
    steps: int

    def slopes(self) -> dict[str, tuple[float, float]]:
        """By name: the value in the middle of the time, and its growth in an hour, by a line through what follows."""
        half = self.samples[-1]["seconds"] / 2
        late = [sample for sample in self.samples if sample["seconds"] >= half]
        hours = np.array([sample["seconds"] for sample in late]) / 3600
        found = {}
        for name in sorted(set(late[0]) & set(late[-1]) - {"seconds"}):
            values = np.array([sample.get(name, np.nan) for sample in late])
            is_known = ~np.isnan(values)
            found[name] = (float(values[is_known][0]), float(np.polyfit(hours[is_known], values[is_known], 1)[0]))
        return found


def soak(folder: Path, model: Path, minutes: float, *, seed: int, gap_seconds: float) -> Soaked:
    """Let actors come and go for so long, then let the run end and recount its ledger.

    Args:
        folder: emptied; samples.jsonl and growth.png stay in it.
        gap_seconds: mean time between two things that happen to an actor.
    """
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    words = (
        "--lag.max_lag",
        str(MAX_LAG),
        "--checkpoint.interval_steps",
        str(INTERVAL),
        "--training.learning_rate",
        "1e-4",
    )
    fleet = Fleet(folder, model, words, "scripted", seed)
    draws, happened, samples = random.Random(seed), Counter[str](), list[dict[str, float]]()
    leaving: dict[str, float] = {}
    began = time.monotonic()
    due_at, sampled_at = began + 30.0, began
    fleet.learner.start(fleet.environment(None))
    try:
        with (folder / "samples.jsonl").open("w") as file:
            while (now := time.monotonic()) < began + 60 * minutes:
                if not fleet.learner.is_up:
                    raise RuntimeError(f"the learner has ended: {fleet.log_ends()}")
                for actor in fleet.actors:
                    if actor.is_up and now > leaving.get(actor.name, now) + LEAVING_SECONDS:
                        raise RuntimeError(f"{actor.name} did not leave within {LEAVING_SECONDS:.0f} s")
                if now >= due_at:
                    happened[_happen(fleet, draws, leaving, now)] += 1
                    due_at = now + draws.expovariate(1 / gap_seconds)
                if now >= sampled_at:
                    samples.append({"seconds": now - began, **measured(fleet)})
                    file.write(json.dumps(samples[-1]) + "\n")
                    file.flush()
                    sampled_at += SAMPLE_SECONDS
                time.sleep(0.1)
        steps = fleet.trained()
        fleet.finish(steps + 2, 300.0)
    finally:
        fleet.close()
    plot_growth(samples, folder / "growth.png")
    ledger = fleet.run / "ledger" / "ledger.sqlite"
    sizes = {"groups_per_step": GROUPS_PER_STEP, "max_lag": MAX_LAG, "checkpoint_interval": INTERVAL}
    found = recount(ledger, **sizes, acks=fleet.acks)
    return Soaked(happened, samples, found, steps)


def _happen(fleet: Fleet, draws: random.Random, leaving: dict[str, float], now: float) -> str:
    """One thing that happens to an actor; one that has gone joins again."""
    actor: Service = draws.choice(fleet.actors)
    if not actor.is_up:
        leaving.pop(actor.name, None)
        actor.start(fleet.environment(None))
        return "joined"
    if actor.name in leaving or sum(each.is_up for each in fleet.actors) <= LEAST_ACTORS:
        return "left alone"
    assert actor.process is not None
    if draws.random() < 0.3:
        actor.process.send_signal(signal.SIGTERM)
        leaving[actor.name] = now
        return "left"
    parts = [child for child in psutil.Process(actor.process.pid).children() if draws.random() < 0.5]
    for child in parts or [psutil.Process(actor.process.pid)]:
        child.kill()
    return "engine processes killed" if parts else "launcher killed"


def measured(fleet: Fleet) -> dict[str, float]:
    """What is looked at: MiB of memory and descriptors by process of the learner, MiB of files by kind, counts."""
    found: dict[str, float] = defaultdict(float)
    actors = {actor.name for actor in fleet.actors}
    is_learners = True
    for name, process in fleet.parts():
        is_learners = is_learners and name not in actors
        if not is_learners:
            break
        try:
            found[f"{name}: MiB"] = process.memory_info().rss / 2**20
            found[f"{name}: descriptors"] = process.num_fds()
        except psutil.Error:
            continue
    for kind in KINDS:
        found[f"{kind}: MiB"] = _mebibytes(fleet.run / kind)
    found["all of the run: MiB"] = _mebibytes(fleet.run)
    found["shared memory: MiB"] = _mebibytes(SHARED)
    found["steps"], found["groups"] = fleet.steps(), fleet.counted()
    return dict(found)


def _mebibytes(path: Path) -> float:
    """That a file, or all files of a folder, take on disk; what vanishes meanwhile takes none."""
    folders = [folder for folder, _, _ in os.walk(path)]
    files = [Path(entry.path) for folder in folders for entry in _entries(folder)] or [path]
    return sum(map(_size, files)) / 2**20


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _size(path: Path) -> int:
    try:
        return path.lstat().st_blocks * 512
    except OSError:
        return 0
