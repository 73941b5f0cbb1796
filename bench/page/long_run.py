"""A run folder of many visits, as a learner of months leaves it; rows are written in bulk, digests and all."""

import json
import random
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dcpo_async.config import RunConfig
from dcpo_async.records import Group, Response, VersionSegment
from learner.ledger.group_format import GROUP_FORMAT, encode_group
from learner.ledger.ledger import Ledger
from learner.ledger.reader import segments_folder
from learner.ledger.rows import Row, row_digest
from learner.ledger.schema import GROUPS, LEDGER_NAME, PROMPT_STATS, PROMPTS, STEPS, VERSIONS, VISITS
from learner.ledger.segments import Segments

GROUP_SIZE, GROUPS_PER_STEP = 16, 64
RESPONSE_TOKENS = 800
NUM_RECORDS = 64
"""Groups whose arrays are really there; all rows point to one of them: only one prompt's are ever read at once."""
NANO = 1_000_000_000


def make_run(folder: Path, num_visits: int, num_prompts: int) -> None:
    """Write ledger, metrics, settings and status of a run that was stopped."""
    folder.mkdir(parents=True)
    num_steps = num_visits // GROUPS_PER_STEP
    (folder / "config.json").write_text(RunConfig(folder=folder).model_dump_json())
    write_metrics(folder / "metrics.jsonl", num_steps)
    Ledger(folder / "ledger").close()
    places = _records(folder / "ledger")
    connection = sqlite3.connect(folder / "ledger" / LEDGER_NAME, isolation_level=None)
    connection.execute("PRAGMA synchronous=OFF")
    dice, sums = random.Random(0), dict[str, list[int]]()
    prompts = ((f"{n:016x}", f"How many of the {n} apples are red? " * 8, str(n)) for n in range(num_prompts))
    _write(connection, PROMPTS.name, prompts)
    _write(connection, VERSIONS.name, ((step + 1, step, 1) for step in range(num_steps)))
    _write(connection, STEPS.name, ((n // GROUPS_PER_STEP, n % GROUPS_PER_STEP, n) for n in range(num_visits)))
    _write(connection, VISITS.name, (_visit(n, num_prompts) for n in range(num_visits)))
    _write(connection, GROUPS.name, (_group(n, num_prompts, places, dice, sums) for n in range(num_visits)))
    _write(connection, PROMPT_STATS.name, ((name, *row[:3], str(row[3])) for name, row in sums.items()))
    connection.close()
    status = {"run_id": "run-long", "step": num_steps, "max_steps": num_steps, "is_over": True, "is_finished": True}
    counted = {"groups_counted": num_visits, "weights_version": num_steps, "actors_connected": [], "incarnation": 1}
    (folder / "status.json").write_text(json.dumps({**status, **counted, "written_at": time.time()}))


def write_metrics(path: Path, num_steps: int) -> None:
    """A line of about a hundred values for each step."""
    dice = random.Random(1)
    names = ["reward", "rur", "tcr", "lag_mean", "entropy", "response_length", "grad_norm", "step_seconds"]
    names += ["wait_seconds", "tokens_per_second", "actor_tokens_per_second", *(f"other_{n}" for n in range(90))]
    with path.open("w") as file:
        for step in range(1, num_steps + 1):
            line = {"step": step, "seconds": 40.0 * step, **{name: dice.random() for name in names}}
            file.write(json.dumps(line) + "\n")


def _records(folder: Path) -> list[Row]:
    segments = Segments(segments_folder(folder), 1, 0)
    places = [tuple(segments.append(encode_group(_sampled(n)))) for n in range(NUM_RECORDS)]
    segments.sync()
    segments.abandon()
    return places


def _sampled(number: int) -> Group:
    dice = np.random.default_rng(number)
    responses = tuple(
        Response(
            token_ids=dice.integers(0, 1000, RESPONSE_TOKENS, dtype=np.int32),
            behavior_logprobs=np.full(RESPONSE_TOKENS, -0.5, dtype=np.float32),
            segments=(VersionSegment(1, RESPONSE_TOKENS),),
            finish_reason="stop",
            text="so it is red, and then " * 120 + r"\boxed{5}",
        )
        for _ in range(GROUP_SIZE)
    )
    return Group(number, 1, responses, (1.0,) * GROUP_SIZE, ("equal",) * GROUP_SIZE)


def _visit(position: int, num_prompts: int) -> Row:
    prompt_id, visit = f"{position % num_prompts:016x}", 1 + position // num_prompts
    return position, prompt_id, visit, 1, 0, max(0, position // GROUPS_PER_STEP - 4), "accepted"


def _group(position: int, num_prompts: int, places: list[Row], dice: random.Random, sums: dict[str, list[int]]) -> Row:
    number = position % num_prompts
    rewards = [float(dice.random() < number / num_prompts) for _ in range(GROUP_SIZE)]
    advantages = " ".join(repr(dice.gauss(0, 1)) for _ in rewards)
    counted = sums.setdefault(f"{number:016x}", [0, 0, 0, 0])
    right = int(sum(rewards))
    for place, more in enumerate((1, GROUP_SIZE, right * NANO, right * NANO * NANO)):
        counted[place] += more
    return position, *places[position % NUM_RECORDS], " ".join(map(repr, rewards)), advantages, GROUP_FORMAT


def _write(connection: sqlite3.Connection, table: str, rows: Iterator[Row]) -> None:
    connection.execute("BEGIN")
    first: Any = next(rows)
    query = f"INSERT INTO {table} VALUES ({', '.join('?' * (len(first) + 1))})"
    connection.execute(query, (*first, row_digest(table, first)))
    connection.executemany(query, ((*row, row_digest(table, row)) for row in rows))
    connection.execute("COMMIT")
