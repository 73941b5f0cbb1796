"""The ledger of a run: rows in SQLite, arrays in append-only segment files; the coordinator is its only writer.

Nothing in it is ever rolled back. What `commit` returns from is durable: segment bytes are fsynced before the rows
that point to them, and SQLite runs with synchronous=FULL.
"""

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from dcpo_async.algorithm import RewardStats
from dcpo_async.durable import sync
from dcpo_async.errors import LedgerError
from dcpo_async.records import Prompt
from learner.ledger.reader import LedgerReader, StoredGroup, segments_folder
from learner.ledger.schema import LEDGER_NAME, prepare_tables
from learner.ledger.segments import SEGMENT_BYTES, Segments

LOCK_SECONDS = 1.0
"""How long to wait for a learner that is just ending."""


class Ledger(LedgerReader):
    """Opens or creates the ledger in a folder.

    Attributes:
        incarnation: number of this start, from 1.
        num_groups: that were ever counted.

    Raises:
        LedgerError: another learner has it open, it is damaged, or the folder cannot be written.
    """

    def __init__(self, folder: Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        """Lock the ledger, cut what was never acknowledged, and begin a new incarnation.

        Args:
            folder: made if it is missing.
            segment_bytes: a segment file that has grown beyond this is followed by the next one.
        """
        self._path = folder / LEDGER_NAME
        with self._translated():
            segments_folder(folder).mkdir(parents=True, exist_ok=True)
            super().__init__(folder, sqlite3.connect(self._path, timeout=LOCK_SECONDS, isolation_level=None))
            # Before anything is read: the lock is taken with the first access, and kept.
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._begin()
            prepare_tables(self._db, self._path)
            self.incarnation = int(self.meta("incarnation") or 0) + 1
            self.set_meta("incarnation", str(self.incarnation))
            self._segments: Segments = Segments(segments_folder(folder), *self._newest_record(), segment_bytes)
            for path in (folder, folder.parent):
                sync(path)
        self.num_groups = int(self._db.execute("SELECT COUNT(*) FROM groups").fetchone()[0])
        self.commit()

    # ---- transactions

    def _begin(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Make everything since the last commit durable, arrays first; raises LedgerError when the disk refuses."""
        with self._translated():
            self._segments.sync()
            self._db.execute("COMMIT")
            self._begin()

    def close(self) -> None:
        """Commit and release the ledger."""
        self.commit()
        self.abandon()

    def abandon(self) -> None:
        """Release the ledger without what was not committed; every later commit raises LedgerError."""
        self._db.close()
        self._segments.abandon()

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

    def write_quarantine(self, position: int, prompt_id: str, visit: int, reason: str | None = None) -> None:
        """Close a visit of a prompt that is quarantined; a reason quarantines it, until it is released."""
        if reason is not None:
            self._db.execute(
                "INSERT INTO quarantines (position, prompt_id, reason) VALUES (?, ?, ?)", (position, prompt_id, reason)
            )
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
        place, scores = self._segments.append(group.parts), (_floats(group.rewards), _floats(group.advantages))
        self._db.execute(
            "INSERT INTO groups (position, segment, byte_offset, num_bytes, digest, rewards, advantages, format) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (group.position, *place, *scores, group.group_format),
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
        self.num_groups += 1

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

    # ---- old log-probs of `old: proximal`

    def write_old_logprobs(self, position: int, response: int, data: bytes) -> None:
        """Keep a response's old log-probs beside its batch; written once, later writes change nothing."""
        if self.read_old_logprobs(position, response) is None:
            place = self._segments.append((data,))
            self._db.execute("INSERT INTO old_logprobs VALUES (?, ?, ?, ?, ?, ?)", (position, response, *place))

    # ---- segments

    def release_segments(self, oldest_retained_step: int) -> list[int]:
        """Delete segments whose groups every retained checkpoint already contains; returns their numbers.

        Groups that never train (too old) keep a segment no longer than their neighbours do. The running transaction
        is committed first: only rows that will be found again may take the place of a file.
        """
        self.commit()
        return self._segments.release(lambda segment: self._is_needed(segment, oldest_retained_step))

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

    def _newest_record(self) -> tuple[int, int]:
        """Number of the newest segment that a row points to, and where its last record ends."""
        row = self._db.execute(
            "SELECT segment, MAX(byte_offset + num_bytes) FROM "
            "(SELECT segment, byte_offset, num_bytes FROM groups UNION ALL "
            "SELECT segment, byte_offset, num_bytes FROM old_logprobs) "
            "GROUP BY segment ORDER BY segment DESC LIMIT 1"
        ).fetchone()
        return (row[0], row[1]) if row else (1, 0)


def _floats(values: Sequence[float]) -> str:
    """Text that gives the same floats back, bit for bit."""
    return " ".join(map(repr, values))
