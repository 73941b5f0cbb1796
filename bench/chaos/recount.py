"""A reader of the ledger that shares no code with its writer: what must hold, whatever was killed."""

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import sqrt
from pathlib import Path

BILLION = 1_000_000_000
TOLERANCE = 1e-9
"""Of an advantage against its recount: the ledger's are floats of doubles, summed in another order."""


@dataclass(frozen=True, slots=True)
class Recount:
    """What a ledger holds, and what is wrong with it.

    Attributes:
        groups, steps, versions, attempts: rows of each kind; attempts are leases that went out.
        acks: groups that actors were told are durable, by their own account.
        faults: each in words; empty where all holds.
    """

    groups: int
    steps: int
    versions: int
    attempts: int
    acks: int
    faults: tuple[str, ...]


class _Rows:
    """The tables of a ledger, each read once."""

    def __init__(self, path: Path) -> None:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
            self.visits = connection.execute(
                "SELECT position, prompt_id, visit, attempt, weights_step, state FROM visits ORDER BY position"
            ).fetchall()
            self.groups = {
                position: ([float(reward) for reward in rewards.split()], [float(x) for x in advantages.split()])
                for position, rewards, advantages in connection.execute(
                    "SELECT position, rewards, advantages FROM groups"
                )
            }
            self.stats = connection.execute(
                "SELECT prompt_id, visits, count, sum_nano, sum_sq_nano FROM prompt_stats"
            ).fetchall()
            self.steps = connection.execute("SELECT step, place, position FROM steps ORDER BY step, place").fetchall()
            self.versions = connection.execute(
                "SELECT weights_version, step, incarnation FROM versions ORDER BY weights_version"
            ).fetchall()
        connection.close()


def recount(
    ledger: Path, *, groups_per_step: int, max_lag: int, checkpoint_interval: int, acks: Path | None = None
) -> Recount:
    """Read a ledger that nobody writes to.

    Args:
        ledger: its database.
        groups_per_step: B of the run, one update to a batch.
        max_lag: largest lag, in optimizer steps.
        checkpoint_interval: steps that a trainer may begin again from, without a new start of its learner.
        acks: folder of what actors were told, as `inject` writes it.
    """
    rows = _Rows(ledger)
    told = _acks(acks)
    faults = [
        *_visit_faults(rows),
        *_statistics_faults(rows),
        *_advantage_faults(rows),
        *_step_faults(rows, groups_per_step, max_lag),
        *_version_faults(rows, checkpoint_interval),
        *_ack_faults(rows, told),
    ]
    return Recount(
        groups=len(rows.groups),
        steps=len({step for step, _, _ in rows.steps}),
        versions=len(rows.versions),
        attempts=sum(attempt for _, _, _, attempt, _, _ in rows.visits),
        acks=len(told),
        faults=tuple(faults),
    )


def _visit_faults(rows: _Rows) -> Iterator[str]:
    visits = defaultdict(list)
    for number, (position, prompt, visit, _, _, state) in enumerate(rows.visits):
        if position != number:
            yield f"position {number} is missing before {position}"
            return
        visits[prompt].append(visit)
        is_counted = state in ("accepted", "too_old", "discarded")
        if is_counted != (position in rows.groups):
            yield f"position {position} is {state}, its group is {'not ' * is_counted}there"
    for prompt, numbers in visits.items():
        if numbers != [*range(1, len(numbers) + 1)]:
            yield f"prompt {prompt} has the visits {numbers[:20]}"


def _counted(rows: _Rows) -> dict[str, list[list[Fraction]]]:
    """Exact rewards of each prompt's counted visits, in their order."""
    found = defaultdict(list)
    for position, prompt, _, _, _, _ in rows.visits:
        if position in rows.groups:
            rewards = rows.groups[position][0]
            found[prompt].append([Fraction(round(reward * BILLION), BILLION) for reward in rewards])
    return found


def _statistics_faults(rows: _Rows) -> Iterator[str]:
    expected = {}
    for prompt, visits in _counted(rows).items():
        nanos = [int(reward * BILLION) for rewards in visits for reward in rewards]
        expected[prompt] = (len(visits), len(nanos), sum(nanos), sum(nano * nano for nano in nanos))
    found = {prompt: tuple(map(int, numbers)) for prompt, *numbers in rows.stats}
    for prompt in expected.keys() | found.keys():
        if found.get(prompt) != expected.get(prompt):
            yield f"statistics of {prompt} are {found.get(prompt)}, its groups give {expected.get(prompt)}"


def _advantage_faults(rows: _Rows) -> Iterator[str]:
    """Smooth advantages with ddof 1 (arXiv 2509.02333), of all rewards that the prompt has had."""
    before: dict[str, list[Fraction]] = defaultdict(list)
    visits_of = Counter[str]()
    for position, prompt, _, _, _, _ in rows.visits:
        if position not in rows.groups:
            continue
        given, found = rows.groups[position]
        rewards = [Fraction(round(reward * BILLION), BILLION) for reward in given]
        before[prompt] += rewards
        visits_of[prompt] += 1
        i = visits_of[prompt]
        new, total = _standardized(rewards, rewards), _standardized(rewards, before[prompt])
        for place, (a, b) in enumerate(zip(new, total, strict=True)):
            sa_new, sa_total = ((i - 1) * a + b) / i, (a + (i - 1) * b) / i
            expected = sa_new if abs(sa_new) < abs(sa_total) else sa_total
            if abs(expected - found[place]) > TOLERANCE:
                yield f"advantage {place} of position {position} is {found[place]}, the equations give {expected}"


def _standardized(values: Sequence[Fraction], among: Sequence[Fraction]) -> list[float]:
    mean = sum(among, Fraction()) / len(among)
    variance = sum(((value - mean) ** 2 for value in among), Fraction()) / (len(among) - 1)
    return [float(value - mean) / sqrt(variance) if variance else 0.0 for value in values]


def _step_faults(rows: _Rows, groups_per_step: int, max_lag: int) -> Iterator[str]:
    trained = Counter(position for _, _, position in rows.steps)
    if twice := [position for position, count in trained.items() if count > 1]:
        yield f"positions {twice[:20]} train twice"
    sizes = Counter(step for step, _, _ in rows.steps)
    if [*sizes] != [*range(len(sizes))]:
        yield f"steps are {[*sizes][:20]}…, with a gap"
    if wrong := {step: size for step, size in sizes.items() if size != groups_per_step}:
        yield f"steps have other sizes than {groups_per_step}: {wrong}"
    of_position = {position: (weights_step, state) for position, _, _, _, weights_step, state in rows.visits}
    for step, _, position in rows.steps:
        weights_step, state = of_position.get(position, (step, "missing"))
        if state != "accepted":
            yield f"position {position} of step {step} is {state}"
        if step - weights_step > max_lag:
            yield f"position {position} trains in step {step} by weights of step {weights_step}"


def _version_faults(rows: _Rows, checkpoint_interval: int) -> Iterator[str]:
    incarnations = [incarnation for _, _, incarnation in rows.versions]
    if incarnations != sorted(incarnations):
        yield "a version of an earlier start follows one of a later start"
    for (_, step, incarnation), (version, later_step, later) in zip(rows.versions, rows.versions[1:], strict=False):
        if later == incarnation and later_step < step and later_step % checkpoint_interval:
            yield f"version {version} is of step {later_step}, after one of step {step} in the same start"


def _acks(folder: Path | None) -> set[tuple[int, int]]:
    if folder is None:
        return set()
    lines = [line for path in folder.glob("*.acks") for line in path.read_text().splitlines()]
    return {(int(position), int(attempt)) for position, attempt in map(str.split, lines)}


def _ack_faults(rows: _Rows, told: set[tuple[int, int]]) -> Iterator[str]:
    counted = {(position, attempt) for position, _, _, attempt, _, _ in rows.visits if position in rows.groups}
    for position, attempt in sorted(told - counted):
        yield f"an actor was told that attempt {attempt} of position {position} is durable, and it is not there"
