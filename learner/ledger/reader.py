"""What can be read from a ledger: rows of SQLite, and the arrays that they point to."""

import sqlite3
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

from dcpo_async.algorithm import RewardStats
from dcpo_async.errors import LedgerError, ReleasedError

RECORD_HEAD = struct.Struct("<I")
FRAME_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class VisitRow:
    """A visit as the ledger has it; `step` is None until a committed batch contains it."""

    position: int
    prompt_id: str
    visit: int
    attempt: int
    failures: int
    weights_step: int
    state: str
    step: int | None


@dataclass(frozen=True, slots=True)
class StoredGroup:
    """A group's frames as they came over the wire, with what the ledger made of them.

    Attributes:
        frames: header and arrays, in the encoding of `dcpo_async.protocol.codec`.
        rewards, advantages: one for each response.
    """

    position: int
    frames: tuple[bytes, ...]
    rewards: tuple[float, ...]
    advantages: tuple[float, ...]


class LedgerReader:
    """Reads a ledger through an open connection.

    Args:
        folder: of the ledger; the segment files are in it, also where the connection is to a copy of its rows.
    """

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self.folder, self._db = folder, connection
        self._segments = folder / "segments"

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

    def visits(self, where: str = "1", *values: object) -> list[VisitRow]:
        """Visits in lease order; `where` is SQL over the columns v.* and s.step, with a `?` for each value."""
        rows = self._db.execute(
            "SELECT v.position, prompt_id, visit, attempt, failures, weights_step, state, s.step "
            f"FROM visits v LEFT JOIN steps s ON s.position = v.position WHERE {where} ORDER BY v.position",
            values,
        )
        return [VisitRow(*row) for row in rows]

    def visit(self, position: int) -> VisitRow | None:
        """The visit at a position; None when it was never leased or skipped."""
        return next(iter(self.visits("v.position = ?", position)), None)

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
            "SELECT segment, byte_offset, num_bytes, digest, rewards, advantages FROM groups WHERE position = ?",
            (position,),
        ).fetchone()
        if row is None:
            raise LedgerError(f"{self.folder}: the ledger has no group at position {position}")
        return StoredGroup(position, self._read(*row[:4]), _parsed(row[4]), _parsed(row[5]))

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
        return self._read(*row)[0] if row else None

    # ---- segments

    def _segment_path(self, number: int) -> Path:
        return self._segments / f"{number:06d}.segment"

    def _read(self, segment: int, offset: int, num_bytes: int, digest: str) -> tuple[bytes, ...]:
        path = self._segment_path(segment)
        try:
            with path.open("rb") as file:
                file.seek(offset)
                record = file.read(num_bytes)
        except FileNotFoundError:
            raise ReleasedError(
                f"{path}: gone, but a step asks for groups in it; was an older checkpoint put back?"
            ) from None
        if xxhash.xxh3_128_hexdigest(record) != digest:
            raise LedgerError(
                f"{path}: bytes {offset} to {offset + num_bytes} do not match their digest; restore the file"
            )
        return tuple(_frames(record))


def _frames(record: bytes) -> Iterator[bytes]:
    (count,) = RECORD_HEAD.unpack_from(record)
    start = RECORD_HEAD.size + count * FRAME_LENGTH.size
    for i in range(count):
        (length,) = FRAME_LENGTH.unpack_from(record, RECORD_HEAD.size + i * FRAME_LENGTH.size)
        yield record[start : start + length]
        start += length


def _parsed(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split()))
