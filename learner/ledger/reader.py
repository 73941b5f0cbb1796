"""What can be read from a ledger: rows of SQLite, and the arrays that they point to."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dcpo_async.algorithm import RewardStats
from dcpo_async.errors import LedgerError
from dcpo_async.records import Group
from learner.ledger.group_format import GROUP_FORMAT, decode_group
from learner.ledger.rows import Row, Rows
from learner.ledger.schema import (
    EVALUATION_RESULTS,
    EVALUATIONS,
    GROUPS,
    META,
    OLD_LOGPROBS,
    PROMPT_STATS,
    PROMPTS,
    QUARANTINES,
    STARTS,
    STEPS,
    VERSIONS,
    VISITS,
)
from learner.ledger.segments import Place, SegmentReader

NEXT_POSITION = "next_position"
"""The word about a run that says how far its order has come, where prompts rest: positions before it that have no visit
were passed over."""
LAST_CHARACTER = "\U0010ffff"
"""Texts that begin so lie between the beginning and it with this character behind: an index finds them."""
FIRST_SEGMENT = "first_segment"
"""The word about a fork that says where its own segments begin: those before are the original's, and are not there."""
VisitState = Literal["leased", "accepted", "too_old", "discarded", "quarantined"]
EvaluationState = Literal["running", "complete", "incomplete"]


@dataclass(frozen=True, slots=True)
class VisitRow:
    """A visit as the ledger has it; `step` is None until a committed batch contains it."""

    position: int
    prompt_id: str
    visit: int
    attempt: int
    failures: int
    weights_step: int
    state: VisitState
    step: int | None = None


@dataclass(frozen=True, slots=True)
class QuarantineRow:
    """A prompt that is not leased any more, since the visit at a position failed for this reason."""

    prompt_id: str
    position: int
    reason: str


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """An evaluation that the run ordered from its actors.

    Attributes:
        evaluation: its number, from 1.
        weights_version, step: what is measured.
        num_problems: in all sets.
        settings: what shapes each result, as text: results of other settings are not added to it.
        reason: why it is incomplete; else empty.
    """

    evaluation: int
    weights_version: int
    step: int
    num_problems: int
    settings: str
    state: EvaluationState
    reason: str = ""


@dataclass(frozen=True, slots=True)
class StoredGroup:
    """A group's record, with what the ledger made of it.

    Attributes:
        parts: of the record, see `learner.ledger.group_format`.
        rewards, advantages: one for each response.
        group_format: of the parts.
    """

    position: int
    parts: tuple[bytes, ...]
    rewards: tuple[float, ...]
    advantages: tuple[float, ...]
    group_format: int = GROUP_FORMAT

    @property
    def group(self) -> Group:
        """The group as the actor sent it; its arrays are views of the parts."""
        return decode_group(self.group_format, self.parts)


@dataclass(frozen=True, slots=True)
class Start:
    """A start of the learner.

    Attributes:
        incarnation: its number, from 1.
        began_at: UTC, as ISO 8601 writes it.
        release: of dcpo-async.
        settings: all of them, resolved.
        changes: what differs from the start before, a line for each setting.
    """

    incarnation: int
    began_at: str
    release: str
    settings: dict[str, Any]
    changes: tuple[str, ...]


class LedgerReader:
    """Reads a ledger; every row that it gives has matched its digest, and methods raise LedgerError where one has not.

    Args:
        folder: of the ledger; the segment files are in it, also where the rows are those of a copy.
        rows: of the ledger, their tables prepared.
    """

    def __init__(self, folder: Path, rows: Rows) -> None:
        self.folder, self._rows = folder, rows
        self._segments = SegmentReader(segments_folder(folder))

    # ---- what kind of run this is

    def meta(self, key: str) -> str | None:
        """A word about the run, such as its id; None when it was never set."""
        found = self._rows.find(META, "WHERE key = ?", (key,))
        return found[0][1] if found else None

    def starts(self) -> list[Start]:
        """Every start of the run that was written down, oldest first."""
        return [
            Start(incarnation, began_at, release, json.loads(settings), tuple(json.loads(changes)))
            for incarnation, began_at, release, settings, changes in self._rows.find(STARTS, "ORDER BY incarnation")
        ]

    # ---- prompts and visits

    def prompt_text(self, prompt_id: str) -> tuple[str, str] | None:
        """Problem and reference answer of a prompt; None where no learner has written them."""
        found = self._rows.find(PROMPTS, "WHERE prompt_id = ?", (prompt_id,))
        return (found[0][1], found[0][2]) if found else None

    def prompt_ids(self, prefix: str, limit: int) -> list[str]:
        """Ids of visited prompts that begin so, the first few."""
        rows = self._rows.query(
            "SELECT DISTINCT prompt_id FROM visits WHERE prompt_id >= ? AND prompt_id < ? ORDER BY prompt_id LIMIT ?",
            (prefix, prefix + LAST_CHARACTER, limit),
        )
        return [row[0] for row in rows]

    def visits(
        self,
        *states: VisitState,
        position: int | None = None,
        prompt_id: str | None = None,
        step: int | None = None,
        is_open: bool = False,
    ) -> list[VisitRow]:
        """Visits in lease order.

        Args:
            states: in one of these; none takes all.
            position, prompt_id, step: only what has it.
            is_open: only what no committed batch contains.
        """
        wanted = {"v.position": position, "prompt_id": prompt_id, "s.step": step}
        values = {column: value for column, value in wanted.items() if value is not None}
        conditions = [f"{column} = ?" for column in values]
        if states:
            conditions.append(f"state IN ({', '.join('?' * len(states))})")
        if is_open:
            conditions.append("s.step IS NULL")
        rows = self._rows.query(
            "SELECT v.*, s.* FROM visits v LEFT JOIN steps s ON s.position = v.position "
            f"WHERE {' AND '.join(conditions) or '1'} ORDER BY v.position",
            (*values.values(), *states),
        )
        return [self._visit_row(row) for row in rows]

    def _visit_row(self, row: Row) -> VisitRow:
        visit = VisitRow(*self._rows.checked(VISITS, row[: VISITS.width]))
        step = row[VISITS.width :]
        return visit if step[0] is None else replace(visit, step=self._rows.checked(STEPS, step)[0])

    def visit(self, position: int) -> VisitRow | None:
        """The visit at a position; None when it was never leased or skipped."""
        return next(iter(self.visits(position=position)), None)

    def next_position(self) -> int:
        """The first position that was never leased, skipped or passed over."""
        after_visits = int(self._rows.query("SELECT COALESCE(MAX(position) + 1, 0) FROM visits")[0][0])
        return max(after_visits, int(self.meta(NEXT_POSITION) or 0))

    # ---- groups and statistics

    def reward_stats(self, prompt_id: str) -> RewardStats:
        """The exact cumulative statistics of a prompt."""
        found = self._rows.find(PROMPT_STATS, "WHERE prompt_id = ?", (prompt_id,))
        if not found:
            return RewardStats()
        _, visits, count, sum_nano, sum_sq_nano = found[0]
        return RewardStats(visits, count, sum_nano, int(sum_sq_nano))

    def read_scores(self, position: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Rewards and advantages of a group, which stay for ever; None where no group was counted."""
        found = self._rows.find(GROUPS, "WHERE position = ?", (position,))
        return (_parsed(found[0][5]), _parsed(found[0][6])) if found else None

    def rewards_until(self, prompt_id: str, visit: int) -> list[tuple[float, ...]]:
        """Rewards of the prompt's counted groups up to this visit, oldest first."""
        rows = self._rows.query(
            "SELECT v.*, g.* FROM visits v JOIN groups g ON g.position = v.position "
            "WHERE prompt_id = ? AND visit <= ? ORDER BY visit",
            (prompt_id, visit),
        )
        for row in rows:
            self._rows.checked(VISITS, row[: VISITS.width])
        return [_parsed(self._rows.checked(GROUPS, row[VISITS.width :])[5]) for row in rows]

    def read_group(self, position: int) -> StoredGroup:
        """Read a group back as it was.

        Raises:
            ReleasedError: its segment was deleted.
            LedgerError: there is no such group, or its bytes do not match their digest.
        """
        found = self._rows.find(GROUPS, "WHERE position = ?", (position,))
        if not found:
            raise LedgerError(f"{self.folder}: the ledger has no group at position {position}")
        _, segment, byte_offset, num_bytes, digest, rewards, advantages, group_format = found[0]
        parts = self._segments.read(Place(segment, byte_offset, num_bytes, digest))
        return StoredGroup(position, parts, _parsed(rewards), _parsed(advantages), group_format)

    # ---- steps and versions

    def step_positions(self, step: int) -> list[int]:
        """Groups of an optimizer step, in lease order; empty while no batch is committed for it."""
        return [position for _, _, position in self._rows.find(STEPS, "WHERE step = ? ORDER BY place", (step,))]

    def next_batch_step(self) -> int:
        """First step that no committed batch covers."""
        return int(self._rows.query("SELECT COALESCE(MAX(step) + 1, 0) FROM steps")[0][0])

    def version_steps(self) -> dict[int, int]:
        """Optimizer step of every version that was ever granted."""
        return {version: step for version, step, _ in self._rows.find(VERSIONS)}

    # ---- old log-probs of `old: proximal`

    def read_old_logprobs(self, position: int, response: int) -> bytes | None:
        """The stored old log-probs of a response; None when there are none."""
        found = self._rows.find(OLD_LOGPROBS, "WHERE position = ? AND response = ?", (position, response))
        return self._segments.read(Place(*found[0][2:]))[0] if found else None


def is_needed(reader: LedgerReader, segment: int, oldest_step: int) -> bool:
    """Whether a segment holds arrays of a group that may still be trained at `oldest_step` or later."""
    found = reader._rows.query(
        "SELECT 1 FROM (SELECT position FROM groups WHERE segment = :segment "
        "UNION SELECT position FROM old_logprobs WHERE segment = :segment) AS held "
        "JOIN visits v ON v.position = held.position LEFT JOIN steps s ON s.position = held.position "
        "WHERE v.state NOT IN ('too_old', 'discarded') AND (s.step IS NULL OR s.step >= :oldest_step) LIMIT 1",
        {"segment": segment, "oldest_step": oldest_step},
    )
    return bool(found)


def num_groups(reader: LedgerReader) -> int:
    """Groups that were ever counted."""
    return int(reader._rows.query("SELECT COUNT(*) FROM groups")[0][0])


def segment_ends(reader: LedgerReader) -> dict[int, int]:
    """Every segment that a row points to, ascending, and where its last record ends, in bytes."""
    found = reader._rows.query(
        "SELECT segment, MAX(byte_offset + num_bytes) FROM "
        "(SELECT segment, byte_offset, num_bytes FROM groups UNION ALL "
        "SELECT segment, byte_offset, num_bytes FROM old_logprobs) GROUP BY segment ORDER BY segment"
    )
    return dict(found)


def newest_record(reader: LedgerReader) -> tuple[int, int]:
    """Number of the newest segment that a learner needs to go on, and where its last record ends."""
    own = int(reader.meta(FIRST_SEGMENT) or 1), 0
    return max([own, *segment_ends(reader).items()])


def segments_folder(folder: Path) -> Path:
    """Where the segment files of the ledger in a folder are."""
    return folder / "segments"


def _parsed(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split()))


def quarantined(reader: LedgerReader) -> list[QuarantineRow]:
    """Prompts that are quarantined and were not released, oldest first."""
    rows = reader._rows.find(QUARANTINES, "WHERE NOT is_released ORDER BY position")
    return [QuarantineRow(prompt_id, position, reason) for position, prompt_id, reason, _ in rows]


def visited_since(reader: LedgerReader, position: int) -> set[int]:
    """Positions from this one on that have a visit."""
    rows = reader._rows.query("SELECT position FROM visits WHERE position >= ?", (position,))
    return {found for (found,) in rows}


def evaluations(reader: LedgerReader) -> list[EvaluationRow]:
    """Every evaluation that the run ordered, oldest first."""
    return [EvaluationRow(*row) for row in reader._rows.find(EVALUATIONS, "ORDER BY evaluation")]


def evaluation_results(reader: LedgerReader, evaluation: int) -> dict[int, Any]:
    """What was answered of an evaluation: by the number of the problem, as it was written."""
    rows = reader._rows.find(EVALUATION_RESULTS, "WHERE evaluation = ? ORDER BY problem", (evaluation,))
    return {problem: json.loads(result) for _, problem, result in rows}


def meta_from(reader: LedgerReader, prefix: str) -> list[tuple[str, str]]:
    """Words about the run whose names begin so, by name."""
    rows = reader._rows.find(META, "WHERE substr(key, 1, ?) = ? ORDER BY key", (len(prefix), prefix))
    return [(key, value) for key, value in rows]


def first_steps(reader: LedgerReader) -> dict[int, int]:
    """The step from which each start's trainer went on, by incarnation: that of the first version it was granted."""
    found: dict[int, int] = {}
    for _, step, incarnation in reader._rows.find(VERSIONS, "ORDER BY weights_version"):
        found.setdefault(incarnation, step)
    return found
