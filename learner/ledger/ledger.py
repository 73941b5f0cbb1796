"""The ledger of a run: rows in SQLite, arrays in append-only segment files; the coordinator is its only writer.

Nothing in it is ever rolled back. What `commit` returns from is durable: segment bytes are fsynced before the rows
that point to them, and SQLite runs with synchronous=FULL.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import xxhash

from dcpo_async.algorithm import RewardStats
from dcpo_async.durable import sync
from dcpo_async.errors import LedgerError
from dcpo_async.records import Prompt
from learner.ledger.reader import FRAME_LENGTH, RECORD_HEAD, LedgerReader, StoredGroup

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS prompts (
    prompt_id TEXT PRIMARY KEY, problem TEXT NOT NULL, answer TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS visits (
    position INTEGER PRIMARY KEY, prompt_id TEXT NOT NULL, visit INTEGER NOT NULL,
    attempt INTEGER NOT NULL, failures INTEGER NOT NULL DEFAULT 0,
    weights_step INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('leased', 'accepted', 'too_old', 'discarded', 'quarantined'))
);
CREATE INDEX IF NOT EXISTS visits_by_prompt ON visits (prompt_id);
CREATE TABLE IF NOT EXISTS groups (
    position INTEGER PRIMARY KEY REFERENCES visits(position), segment INTEGER NOT NULL,
    byte_offset INTEGER NOT NULL, num_bytes INTEGER NOT NULL, digest TEXT NOT NULL,
    rewards TEXT NOT NULL, advantages TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS groups_by_segment ON groups (segment);
CREATE TABLE IF NOT EXISTS prompt_stats (
    prompt_id TEXT PRIMARY KEY, visits INTEGER NOT NULL, count INTEGER NOT NULL,
    sum_nano INTEGER NOT NULL, sum_sq_nano TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS steps (
    step INTEGER NOT NULL, place INTEGER NOT NULL, position INTEGER NOT NULL UNIQUE REFERENCES groups(position),
    PRIMARY KEY (step, place)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS versions (
    weights_version INTEGER PRIMARY KEY AUTOINCREMENT, step INTEGER NOT NULL, incarnation INTEGER NOT NULL,
    is_published INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS old_logprobs (
    position INTEGER NOT NULL, response INTEGER NOT NULL, segment INTEGER NOT NULL,
    byte_offset INTEGER NOT NULL, num_bytes INTEGER NOT NULL, digest TEXT NOT NULL,
    PRIMARY KEY (position, response)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS old_logprobs_by_segment ON old_logprobs (segment);
"""
COUNTED_IN_BILLIONTHS = (
    "UPDATE prompt_stats SET sum_micro = sum_micro * 1000, sum_sq_micro = sum_sq_micro || '000000'",
    "ALTER TABLE prompt_stats RENAME COLUMN sum_micro TO sum_nano",
    "ALTER TABLE prompt_stats RENAME COLUMN sum_sq_micro TO sum_sq_nano",
)
"""What makes statistics of a ledger from before billionths, counted in millionths, those of this release."""
LEDGER_NAME = "ledger.sqlite"
SEGMENT_BYTES = 256 << 20
LOCK_SECONDS = 1.0
"""How long to wait for a learner that is just ending."""


class Ledger(LedgerReader):
    """Opens or creates the ledger in a folder.

    Raises:
        LedgerError: another learner has it open, it is damaged, or the folder cannot be written.
    """

    def __init__(self, folder: Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        """Lock the ledger, cut what was never acknowledged, and begin a new incarnation.

        Args:
            folder: made if it is missing.
            segment_bytes: a segment file that has grown beyond this is followed by the next one.
        """
        self._path, self._segment_bytes = folder / LEDGER_NAME, segment_bytes
        with self._translated():
            (folder / "segments").mkdir(parents=True, exist_ok=True)
            super().__init__(folder, sqlite3.connect(self._path, timeout=LOCK_SECONDS, isolation_level=None))
            # Before anything is read: the lock is taken with the first access, and kept.
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._begin()
            prepare_tables(self._db)
            self.incarnation = int(self.meta("incarnation") or 0) + 1
            self.set_meta("incarnation", str(self.incarnation))
            self._segment_number, self._tail = self._cut_tails()
            self._file = self._segment_path(self._segment_number).open("r+b")
            for path in (self._segments, folder, folder.parent):
                sync(path)
        self._is_dirty = False
        self._num_groups = int(self._db.execute("SELECT COUNT(*) FROM groups").fetchone()[0])
        self.commit()

    # ---- transactions

    def _begin(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Make everything since the last commit durable, arrays first; raises LedgerError when the disk refuses."""
        with self._translated():
            if self._is_dirty:
                self._file.flush()
                os.fsync(self._file.fileno())
                self._is_dirty = False
            self._db.execute("COMMIT")
            self._begin()

    def close(self) -> None:
        """Commit and release the ledger."""
        self.commit()
        self.abandon()

    def abandon(self) -> None:
        """Release the ledger without what was not committed; every later commit raises LedgerError."""
        self._is_dirty = False
        self._db.close()
        # A full disk may refuse the rest of the buffer, which nobody needs any more.
        with contextlib.suppress(OSError):
            self._file.close()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, OverflowError) as error:
            is_locked = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
            problem = "another learner is running on this folder; stop it or choose another --folder"
            raise LedgerError(f"{self._path}: {problem if is_locked else error}") from error

    # ---- what kind of run this is

    def set_meta(self, key: str, value: str) -> None:
        """Set a word about the run."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def expect_meta(self, key: str, value: str, advice: str) -> None:
        """Set a word the first time and hold later starts to it; raises LedgerError with the advice."""
        found = self.meta(key)
        if found is None:
            self.set_meta(key, value)
        elif found != value:
            raise LedgerError(f"{self.folder}: the run in this folder has {key} {found}, now it is {value}; {advice}")

    # ---- prompts and visits

    def write_prompts(self, prompts: Iterable[Prompt]) -> None:
        """Keep what the prompts say, for people who read the ledger; those that are there stay as they are."""
        self._db.executemany(
            "INSERT OR IGNORE INTO prompts VALUES (?, ?, ?)",
            ((prompt.id, prompt.problem, prompt.answer) for prompt in prompts),
        )

    def write_lease(self, position: int, prompt_id: str, visit: int, attempt: int, weights_step: int) -> None:
        """A lease goes out: for the first time, or again under a new fencing token."""
        self._db.execute(
            "INSERT INTO visits (position, prompt_id, visit, attempt, weights_step, state) "
            "VALUES (?, ?, ?, ?, ?, 'leased') ON CONFLICT (position) DO UPDATE SET attempt = excluded.attempt, "
            "weights_step = excluded.weights_step",
            (position, prompt_id, visit, attempt, weights_step),
        )

    def write_failure(self, position: int, failures: int) -> None:
        """Count a failed attempt."""
        self._db.execute("UPDATE visits SET failures = ? WHERE position = ?", (failures, position))

    def write_quarantine(self, position: int, prompt_id: str, visit: int) -> None:
        """Close a visit of a prompt that is quarantined."""
        self._db.execute(
            "INSERT INTO visits (position, prompt_id, visit, attempt, weights_step, state) "
            "VALUES (?, ?, ?, 0, 0, 'quarantined') ON CONFLICT (position) DO UPDATE SET state = 'quarantined'",
            (position, prompt_id, visit),
        )

    def write_untrained(self, positions: Iterable[int], state: Literal["too_old", "discarded"]) -> None:
        """Note that accepted groups will never train; their statistics stand."""
        with self._translated():
            self._db.executemany(
                "UPDATE visits SET state = ? WHERE position = ?", [(state, position) for position in positions]
            )

    def accept(self, group: StoredGroup, prompt_id: str, stats: RewardStats, weights_step: int) -> None:
        """Add a group, its advantages and the prompt's new statistics in the running transaction.

        Raises LedgerError where their sum exceeds 64 bits, at 9.2 billion rewards of 1.
        """
        segment, offset, num_bytes, digest = self._append(group.frames)
        self._db.execute(
            "INSERT INTO groups VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                group.position,
                segment,
                offset,
                num_bytes,
                digest,
                _floats(group.rewards),
                _floats(group.advantages),
            ),
        )
        self._db.execute(
            "UPDATE visits SET state = 'accepted', weights_step = ? WHERE position = ?",
            (weights_step, group.position),
        )
        with self._translated():
            self._db.execute(
                "INSERT OR REPLACE INTO prompt_stats VALUES (?, ?, ?, ?, ?)",
                (prompt_id, stats.visits, stats.count, stats.sum_nano, str(stats.sum_sq_nano)),
            )
        self._num_groups += 1

    def num_groups(self) -> int:
        """Groups that were ever counted."""
        return self._num_groups

    # ---- steps and versions

    def write_batch(self, first_step: int, positions: Sequence[int], groups_per_step: int) -> None:
        """Assign a batch's groups to its optimizer steps, in lease order."""
        self._db.executemany(
            "INSERT INTO steps VALUES (?, ?, ?)",
            [
                (first_step + i // groups_per_step, i % groups_per_step, position)
                for i, position in enumerate(positions)
            ],
        )

    def grant_version(self, step: int) -> int:
        """A weights version number that was never used before."""
        cursor = self._db.execute("INSERT INTO versions (step, incarnation) VALUES (?, ?)", (step, self.incarnation))
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def write_published(self, weights_version: int) -> None:
        """The version stands in the weight store."""
        self._db.execute("UPDATE versions SET is_published = 1 WHERE weights_version = ?", (weights_version,))

    # ---- old log-probs of `old: proximal`

    def write_old_logprobs(self, position: int, response: int, data: bytes) -> None:
        """Keep a response's old log-probs beside its batch; written once, later writes change nothing."""
        if self.read_old_logprobs(position, response) is None:
            self._db.execute(
                "INSERT INTO old_logprobs VALUES (?, ?, ?, ?, ?, ?)", (position, response, *self._append((data,)))
            )

    # ---- segments

    def release_segments(self, oldest_retained_step: int) -> list[int]:
        """Delete segments whose groups every retained checkpoint already contains; returns their numbers.

        Groups that never train (too old) keep a segment no longer than their neighbours do. The running transaction
        is committed first: only rows that will be found again may take the place of a file.
        """
        self.commit()
        numbers = sorted(int(path.stem) for path in self._segments.glob("*.segment"))
        released = [
            number
            for number in numbers
            if number < self._segment_number and not self._is_needed(number, oldest_retained_step)
        ]
        for number in released:
            self._segment_path(number).unlink()
        return released

    def _is_needed(self, segment: int, oldest_step: int) -> bool:
        """Whether it holds arrays of a group that may still be trained at `oldest_step` or later."""
        row = self._db.execute(
            "SELECT 1 FROM (SELECT position FROM groups WHERE segment = :segment "
            "UNION SELECT position FROM old_logprobs WHERE segment = :segment) AS held "
            "JOIN visits v ON v.position = held.position LEFT JOIN steps s ON s.position = held.position "
            "WHERE v.state NOT IN ('too_old', 'discarded') AND (s.step IS NULL OR s.step >= :oldest_step) LIMIT 1",
            {"segment": segment, "oldest_step": oldest_step},
        ).fetchone()
        return row is not None

    def _cut_tails(self) -> tuple[int, int]:
        """Find the newest segment and cut what has no row: bytes that were never acknowledged."""
        number, end = self._db.execute(
            "SELECT segment, MAX(byte_offset + num_bytes) FROM "
            "(SELECT segment, byte_offset, num_bytes FROM groups UNION ALL "
            "SELECT segment, byte_offset, num_bytes FROM old_logprobs) "
            "GROUP BY segment ORDER BY segment DESC LIMIT 1"
        ).fetchone() or (1, 0)
        for path in self._segments.glob("*.segment"):
            if int(path.stem) > number:
                path.unlink()
        path = self._segment_path(number)
        path.touch()
        if path.stat().st_size < end:
            found = path.stat().st_size
            raise LedgerError(f"{path}: {found} bytes, but the ledger points to {end}; restore the file")
        os.truncate(path, end)
        return number, end

    def _append(self, frames: Sequence[bytes | memoryview]) -> tuple[int, int, int, str]:
        lengths = b"".join(FRAME_LENGTH.pack(memoryview(frame).nbytes) for frame in frames)
        record = b"".join((RECORD_HEAD.pack(len(frames)), lengths, *frames))
        with self._translated():
            if self._tail > self._segment_bytes:
                self._begin_segment()
            offset = self._tail
            self._file.seek(offset)
            self._file.write(record)
        self._tail += len(record)
        self._is_dirty = True
        return self._segment_number, offset, len(record), xxhash.xxh3_128_hexdigest(record)

    def _begin_segment(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._segment_number, self._tail = self._segment_number + 1, 0
        self._file = self._segment_path(self._segment_number).open("w+b")
        sync(self._segments)

    def _read(self, segment: int, offset: int, num_bytes: int, digest: str) -> tuple[bytes, ...]:
        self._file.flush()
        return super()._read(segment, offset, num_bytes, digest)


def prepare_tables(connection: sqlite3.Connection) -> None:
    """Make the tables that a new ledger, or one of an earlier release, has not; the running transaction goes on."""
    for statement in SCHEMA.split(";"):
        connection.execute(statement)
    columns = [row[1] for row in connection.execute("PRAGMA table_info(prompt_stats)")]
    if "sum_micro" in columns:
        for statement in COUNTED_IN_BILLIONTHS:
            connection.execute(statement)


def _floats(values: Sequence[float]) -> str:
    """Text that gives the same floats back, bit for bit."""
    return " ".join(map(repr, values))
