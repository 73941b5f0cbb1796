"""Kill -9 at random moments and at named points, until so many processes have died; then the recount."""

import random
import shutil
import sqlite3
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.chaos.recount import Recount, recount
from bench.chaos.services import GROUPS_PER_STEP, Fleet, Service

LEARNER_POINTS = (
    "learner.ledger.ledger:Ledger.accept:after:0.02",
    "learner.ledger.ledger:Ledger.commit:before:0.01",
    "learner.ledger.ledger:Ledger.commit:after:0.01",
    "learner.ledger.segments:Segments.sync:after:0.02",
    "learner.ledger.ledger:Ledger.write_batch:before:0.1",
    "learner.ledger.ledger:Ledger.write_batch:after:0.1",
    "learner.ledger.ledger:Ledger.grant_version:after:0.1",
    "learner.ledger.ledger:Ledger.release_segments:after:0.3",
    "learner.coordinator.mail:Mail.collect:after:0.01",
    "learner.trainer.publication:Publication.offer:after:0.2",
    "learner.checkpoints.folder:publish_checkpoint:before:0.5",
    "learner.checkpoints.folder:publish_checkpoint:after:0.5",
    "learner.checkpoints.folder:remove_superseded:before:0.5",
    "dcpo_async.weights.store:write_snapshot:before:0.2",
    "dcpo_async.weights.store:write_snapshot:after:0.2",
    "dcpo_async.weights.store:prune:after:0.3",
)
ACTOR_POINTS = (
    "dcpo_async.protocol.session:ActorSession.finish:before:0.05",
    "dcpo_async.protocol.session:ActorSession.finish:after:0.05",
    "dcpo_async.protocol.session:ActorSession.adopted:after:0.1",
    "dcpo_async.protocol.outbox:Outbox.acknowledge:before:0.05",
    "dcpo_async.protocol.outbox:Outbox.acknowledge:after:0.05",
    "dcpo_async.weights.store:verify:after:0.1",
)
WEIGHTS = {"rank": 3, "publisher": 3, "weight server": 2, "engine process": 5, "learner": 1}
"""How often a part is chosen beside others; any other counts once."""
POINT_SHARE = 0.5
"""Of the starts of a service that will die at a named point."""
INTERVAL = 5
"""Steps between two checkpoints."""
STUCK_SECONDS = 600.0
SLOW_TO_START, AT_ONCE_SHARE = {"rank", "learner"}, 0.03
"""Parts whose start takes seconds are mostly left alone until a step has been taken since they died last."""
IN_A_ROW, MOST_IN_A_ROW = {"publisher": 1}, 4
"""A part is killed so often between two groups that are counted: on a busy machine nothing would ever come up, and a
learner ends when its publisher, which has nothing to show then, fails four times in a row."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run of kills came to.

    Attributes:
        deaths: by part, or by point.
        seconds: that it took.
        ledger: the recount.
        differences: rows and weights that differ from an undisturbed run; None where none was made.
        leftovers: processes of the run that were alive after its end.
    """

    deaths: Counter[str]
    seconds: float
    ledger: Recount
    differences: tuple[str, ...] | None
    leftovers: tuple[str, ...]


def run(folder: Path, model: Path, cycles: int, *, max_lag: int, engine: str, seed: int, gap_seconds: float) -> Outcome:
    """Kill until `cycles` processes have died, let the run end, and recount; with max_lag 0 compare with a quiet one.

    Args:
        folder: for everything; emptied.
        gap_seconds: mean time between two kills.

    Raises:
        RuntimeError: for ten minutes nothing was counted, or a service ended by itself in a way that it should not.
    """
    began = time.monotonic()
    words = ("--lag.max_lag", str(max_lag), "--checkpoint.interval_steps", str(INTERVAL))
    fleet = Fleet(_emptied(folder / "killed"), model, words, engine, seed)
    draws, deaths = random.Random(seed), Counter[str]()
    try:
        _kill_until(fleet, cycles, draws, deaths, gap_seconds)
        processes = [process for _, process in fleet.parts()]
        steps = fleet.trained() + 5
        fleet.finish(steps, STUCK_SECONDS)
        time.sleep(3.0)
        fleet.close()
        leftovers = _ended(processes)
    finally:
        fleet.close()
    deaths.update(fleet.deaths.read_text().splitlines() if fleet.deaths.exists() else ())
    sizes = {"groups_per_step": GROUPS_PER_STEP, "max_lag": max_lag, "checkpoint_interval": INTERVAL}
    found = recount(_ledger(fleet), **sizes, acks=fleet.acks)
    differences = _against_undisturbed(fleet, folder, model, steps, engine, seed) if max_lag == 0 else None
    return Outcome(deaths, time.monotonic() - began, found, differences, leftovers)


def _kill_until(fleet: Fleet, cycles: int, draws: random.Random, deaths: Counter[str], gap_seconds: float) -> None:
    counted, counted_at, spared_until_step = 0, time.monotonic(), 1
    since_counted = Counter[str]()
    while deaths.total() + fleet.num_deaths() < cycles:
        for service in fleet.services:
            if not service.is_up:
                _start(fleet, service, draws)
        time.sleep(draws.expovariate(1 / gap_seconds))
        if (now_counted := fleet.counted()) != counted:
            counted, counted_at = now_counted, time.monotonic()
            since_counted.clear()
        elif time.monotonic() - counted_at > STUCK_SECONDS:
            raise RuntimeError(f"nothing was counted for {STUCK_SECONDS:.0f} s: {fleet.log_ends()}")
        spared = {name for name, number in since_counted.items() if number >= IN_A_ROW.get(name, MOST_IN_A_ROW)}
        if fleet.steps() < spared_until_step and draws.random() >= AT_ONCE_SHARE:
            spared |= SLOW_TO_START
        parts = [part for part in fleet.parts() if part[0] not in spared]
        if not parts or deaths.total() + fleet.num_deaths() >= cycles:
            continue
        name, process = draws.choices(parts, [WEIGHTS.get(name, 1) for name, _ in parts])[0]
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
        if name in SLOW_TO_START:
            spared_until_step = fleet.steps() + 2
        since_counted[name] += 1
        deaths[name.rstrip(" 0123456789")] += 1


def _start(fleet: Fleet, service: Service, draws: random.Random) -> None:
    points = LEARNER_POINTS if service is fleet.learner else ACTOR_POINTS
    service.start(fleet.environment(draws.choice(points) if draws.random() < POINT_SHARE else None))


def _against_undisturbed(
    fleet: Fleet, folder: Path, model: Path, steps: int, engine: str, seed: int
) -> tuple[str, ...]:
    """What differs from a run of the same seed and length in which nothing was killed."""
    words = ("--lag.max_lag", "0", "--checkpoint.interval_steps", str(INTERVAL))
    quiet = Fleet(_emptied(folder / "undisturbed"), model, words, engine, seed)
    try:
        quiet.finish(steps, 60 + steps * 5)
    finally:
        quiet.close()
    differences = []
    for query in (
        "SELECT position, rewards, advantages FROM groups ORDER BY position",
        "SELECT step, place, position FROM steps ORDER BY step, place",
        "SELECT * FROM prompt_stats ORDER BY prompt_id",
    ):
        if _rows(_ledger(fleet), query) != _rows(_ledger(quiet), query):
            differences.append(query)
    exports = [(each.run / "export" / "model.safetensors").read_bytes() for each in (fleet, quiet)]
    return (*differences, *(() if exports[0] == exports[1] else ("exported weights",)))


def _rows(ledger: Path, query: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(f"file:{ledger}?mode=ro", uri=True) as connection:
        rows = connection.execute(query).fetchall()
    connection.close()
    return rows


def _ledger(fleet: Fleet) -> Path:
    return fleet.run / "ledger" / "ledger.sqlite"


def _emptied(folder: Path) -> Path:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def _ended(processes: list[psutil.Process]) -> tuple[str, ...]:
    """Command lines of those that were still alive, and are not any more."""
    found = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()[:4]))
                process.kill()
        except psutil.Error:
            continue
    return tuple(found)
