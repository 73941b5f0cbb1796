"""What can be read from a ledger: rows of SQLite, and the arrays that they point to."""

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dcpo_async.algorithm import RewardStats
from dcpo_async.errors import LedgerError
from dcpo_async.records import Group
from learner.ledger.group_format import GROUP_FORMAT, decode_group
from learner.ledger.segments import Place, SegmentReader

VisitState = Literal["leased", "accepted", "too_old", "discarded", "quarantined"]


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
    step: int | None


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


class LedgerReader:
    """Reads a ledger through an open connection.

    Args:
        folder: of the ledger; the segment files are in it, also where the connection is to a copy of its rows.
    """

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self.folder, self._db = folder, connection
        self._segments = SegmentReader(segments_folder(folder))

    @property
    def num_changes(self) -> int:
        """Rows written over this connection so far, those not committed included."""
        return self._db.total_changes

    def meta(self, key: str) -> str | None:
        """A word about the run, such as its id; None when it was never set."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    # ---- prompts and visits

    def prompt_text(self, prompt_id: str) -> tuple[str, str] | None:
        """Problem and reference answer of a prompt; None where no learner has written them."""
        row = self._db.execute("SELECT problem, answer FROM prompts WHERE prompt_id = ?", (prompt_id,)).fetchone()
        return (row[0], row[1]) if row else None

    def prompt_ids(self, prefix: str, limit: int) -> list[str]:
        """Ids of visited prompts that begin so, the first few."""
        rows = self._db.execute(
            "SELECT DISTINCT prompt_id FROM visits WHERE substr(prompt_id, 1, ?) = ? ORDER BY prompt_id LIMIT ?",
            (len(prefix), prefix, limit),
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
        rows = self._db.execute(
            "SELECT v.position, prompt_id, visit, attempt, failures, weights_step, state, s.step "
            "FROM visits v LEFT JOIN steps s ON s.position = v.position "
            f"WHERE {' AND '.join(conditions) or '1'} ORDER BY v.position",
            (*values.values(), *states),
        )
        return [VisitRow(*row) for row in rows]

    def visit(self, position: int) -> VisitRow | None:
        """The visit at a position; None when it was never leased or skipped."""
        return next(iter(self.visits(position=position)), None)

    def next_position(self) -> int:
        """The first position that was never leased or skipped."""
        return int(self._db.execute("SELECT COALESCE(MAX(position) + 1, 0) FROM visits").fetchone()[0])

    # ---- groups and statistics

    def reward_stats(self, prompt_id: str) -> RewardStats:
        """The exact cumulative statistics of a prompt."""
        row = self._db.execute(
            "SELECT visits, count, sum_nano, sum_sq_nano FROM prompt_stats WHERE prompt_id = ?", (prompt_id,)
        ).fetchone()
        return RewardStats(row[0], row[1], row[2], int(row[3])) if row else RewardStats()

    def read_scores(self, position: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Rewards and advantages of a group, which stay for ever; None where no group was counted."""
        row = self._db.execute("SELECT rewards, advantages FROM groups WHERE position = ?", (position,)).fetchone()
        return (_parsed(row[0]), _parsed(row[1])) if row else None

    def rewards_until(self, prompt_id: str, visit: int) -> list[tuple[float, ...]]:
        """Rewards of the prompt's counted groups up to this visit, oldest first."""
        rows = self._db.execute(
            "SELECT rewards FROM visits JOIN groups USING (position) WHERE prompt_id = ? AND visit <= ? ORDER BY visit",
            (prompt_id, visit),
        )
        return [_parsed(row[0]) for row in rows]

    def read_group(self, position: int) -> StoredGroup:
        """Read a group back as it was.

        Raises:
            ReleasedError: its segment was deleted.
            LedgerError: there is no such group, or its bytes do not match their digest.
        """
        row = self._db.execute(
            "SELECT segment, byte_offset, num_bytes, digest, rewards, advantages, format FROM groups "
            "WHERE position = ?",
            (position,),
        ).fetchone()
        if row is None:
            raise LedgerError(f"{self.folder}: the ledger has no group at position {position}")
        parts = self._segments.read(Place(*row[:4]))
        return StoredGroup(position, parts, _parsed(row[4]), _parsed(row[5]), row[6])

    # ---- steps and versions

    def step_positions(self, step: int) -> list[int]:
        """Groups of an optimizer step, in lease order; empty while no batch is committed for it."""
        return [row[0] for row in self._db.execute("SELECT position FROM steps WHERE step = ? ORDER BY place", (step,))]

    def next_batch_step(self) -> int:
        """First step that no committed batch covers."""
        return int(self._db.execute("SELECT COALESCE(MAX(step) + 1, 0) FROM steps").fetchone()[0])

    def version_steps(self) -> dict[int, int]:
        """Optimizer step of every version that was ever granted."""
        return dict(self._db.execute("SELECT weights_version, step FROM versions"))

    # ---- old log-probs of `old: proximal`

    def read_old_logprobs(self, position: int, response: int) -> bytes | None:
        """The stored old log-probs of a response; None when there are none."""
        row = self._db.execute(
            "SELECT segment, byte_offset, num_bytes, digest FROM old_logprobs WHERE position = ? AND response = ?",
            (position, response),
        ).fetchone()
        return self._segments.read(Place(*row))[0] if row else None


def segments_folder(folder: Path) -> Path:
    """Where the segment files of the ledger in a folder are."""
    return folder / "segments"


def _parsed(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split()))
