"""The ledger of a run: rows in SQLite, arrays in append-only segment files; the coordinator is its only writer.

Nothing in it is ever rolled back. What `commit` returns from is durable: segment bytes are fsynced before the rows
that point to them, and SQLite runs with synchronous=FULL.
"""

import contextlib
import dataclasses
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from dcpo_async.algorithm import RewardStats
from dcpo_async.durable import sync
from dcpo_async.errors import LedgerError
from dcpo_async.records import Prompt
from learner.ledger.acknowledged import Acknowledged
from learner.ledger.copy import open_copy
from learner.ledger.lock import LOCK_SECONDS, WriterLock, is_on_network
from learner.ledger.reader import (
    EvaluationRow,
    LedgerReader,
    Start,
    StoredGroup,
    VisitRow,
    is_needed,
    newest_record,
    num_groups,
    segments_folder,
)
from learner.ledger.rows import Rows, damaged, translated
from learner.ledger.schema import (
    EVALUATION_RESULTS,
    EVALUATIONS,
    GROUPS,
    LEDGER_NAME,
    META,
    OLD_LOGPROBS,
    PROMPT_STATS,
    PROMPTS,
    QUARANTINES,
    STARTS,
    STEPS,
    VERSIONS,
    VISITS,
    prepare_tables,
)
from learner.ledger.segments import SEGMENT_BYTES, Segments


class Ledger(LedgerReader):
    """Opens or creates the ledger in a folder.

    Attributes:
        incarnation: number of this start, from 1.
        num_groups: that were ever counted.

    Raises:
        LedgerError: another learner has it open, it is damaged, or the folder cannot be written.
    """

    def __init__(self, folder: Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        """Lock the ledger, check it, cut what was never acknowledged, and begin a new incarnation.

        Args:
            folder: made if it is missing.
            segment_bytes: a segment file that has grown beyond this is followed by the next one.
        """
        self._path = folder / LEDGER_NAME
        with self._translated(), contextlib.ExitStack() as opened:
            segments_folder(folder).mkdir(parents=True, exist_ok=True)
            opened.enter_context(contextlib.closing(WriterLock(folder)))
            if self._path.exists():
                # SQLite writes as it opens and closes a file, damaged or not.
                with open_copy(folder, is_checked=True):
                    pass
            connection = sqlite3.connect(self._path, timeout=LOCK_SECONDS, isolation_level=None)
            self._db = opened.enter_context(contextlib.closing(connection))
            if is_on_network(folder):
                # The log's index is memory that processes share, which SQLite supports within a machine only.
                self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            super().__init__(folder, Rows(self._db, self._path))
            self._begin()
            prepare_tables(self._rows)
            self._acknowledged = opened.enter_context(contextlib.closing(Acknowledged(folder)))
            self.incarnation = int(self.meta("incarnation") or 0) + 1
            self.set_meta("incarnation", str(self.incarnation))
            segments = Segments(segments_folder(folder), *newest_record(self), segment_bytes)
            self._segments: Segments = segments
            opened.callback(segments.abandon)
            for path in (folder, folder.parent):
                sync(path)
            self.num_groups = num_groups(self)
            self._opened = opened.pop_all()
            self.commit()

    # ---- transactions

    def _begin(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Make everything since the last commit durable, arrays first.

        Raises:
            LedgerError: the disk refuses. What was not committed is gone, perhaps a part of it, so that nothing else
                can be committed either.
        """
        try:
            with self._translated():
                has_changed = self._rows.write_totals()
                self._segments.sync()
                self._db.execute("COMMIT")
                if has_changed:
                    self._acknowledged.write(self._rows.commits)
                self._begin()
        except LedgerError:
            self.abandon()
            raise

    def close(self) -> None:
        """Commit and release the ledger."""
        self.commit()
        self.abandon()

    def abandon(self) -> None:
        """Release the ledger without what was not committed; every later commit raises LedgerError."""
        self._opened.close()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise translated(self._path, error) from error

    # ---- what kind of run this is

    def set_meta(self, key: str, value: str) -> None:
        """Set a word about the run."""
        self._rows.put(META, key, value)

    def write_start(self, start: Start) -> None:
        """Keep what this start of the learner was given."""
        settings, changes = json.dumps(start.settings), json.dumps(start.changes)
        self._rows.add(STARTS, start.incarnation, start.began_at, start.release, settings, changes)

    # ---- prompts and visits

    def write_prompts(self, prompts: Iterable[Prompt]) -> None:
        """Keep what the prompts say, for people who read the ledger; those that are there stay as they are."""
        known = {prompt_id for (prompt_id,) in self._rows.query("SELECT prompt_id FROM prompts")}
        for prompt in prompts:
            if prompt.id not in known:
                self._rows.add(PROMPTS, prompt.id, prompt.problem, prompt.answer)

    def write_lease(self, position: int, prompt_id: str, visit: int, attempt: int, weights_step: int) -> None:
        """A lease goes out: for the first time, or again under a new fencing token."""
        before = self.visit(position)
        failures = 0 if before is None else before.failures
        self._put_visit(VisitRow(position, prompt_id, visit, attempt, failures, weights_step, "leased"))

    def write_failure(self, position: int, failures: int) -> None:
        """Count a failed attempt."""
        self._put_visit(dataclasses.replace(self._known_visit(position), failures=failures))

    def write_quarantine(self, position: int, prompt_id: str, visit: int, reason: str | None = None) -> None:
        """Close a visit of a prompt that is quarantined; a reason quarantines it, until it is released."""
        if reason is not None:
            self._rows.put(QUARANTINES, position, prompt_id, reason, 0)
        before = self.visit(position) or VisitRow(position, prompt_id, visit, 0, 0, 0, "quarantined")
        self._put_visit(dataclasses.replace(before, state="quarantined"))

    def write_untrained(self, positions: Iterable[int], state: Literal["too_old", "discarded"]) -> None:
        """Note that accepted groups will never train; their statistics stand."""
        for position in positions:
            self._put_visit(dataclasses.replace(self._known_visit(position), state=state))

    def _known_visit(self, position: int) -> VisitRow:
        visit = self.visit(position)
        if visit is None:
            raise damaged(self._path, f"table visits, position {position}: the row is missing")
        return visit

    def _put_visit(self, visit: VisitRow) -> None:
        self._rows.put(VISITS, *dataclasses.astuple(visit)[: len(VISITS.columns)])

    def accept(self, group: StoredGroup, prompt_id: str, stats: RewardStats, weights_step: int) -> None:
        """Add a group, its advantages and the prompt's new statistics in the running transaction.

        Raises LedgerError where their sum exceeds 64 bits, at 9.2 billion rewards of 1.
        """
        place, scores = self._segments.append(group.parts), (_floats(group.rewards), _floats(group.advantages))
        self._rows.add(GROUPS, group.position, *place, *scores, group.group_format)
        visit = self._known_visit(group.position)
        self._put_visit(dataclasses.replace(visit, state="accepted", weights_step=weights_step))
        sums = stats.sum_nano, str(stats.sum_sq_nano)
        self._rows.put(PROMPT_STATS, prompt_id, stats.visits, stats.count, *sums)
        self.num_groups += 1

    # ---- steps and versions

    def write_batch(self, first_step: int, positions: Sequence[int], groups_per_step: int) -> None:
        """Assign a batch's groups to its optimizer steps, in lease order."""
        for i, position in enumerate(positions):
            self._rows.add(STEPS, first_step + i // groups_per_step, i % groups_per_step, position)

    def grant_version(self, step: int) -> int:
        """A weights version number that was never used before."""
        ((version,),) = self._rows.query("SELECT COALESCE(MAX(weights_version), 0) + 1 FROM versions")
        self._rows.add(VERSIONS, version, step, self.incarnation)
        return int(version)

    # ---- old log-probs of `old: proximal`

    def write_old_logprobs(self, position: int, response: int, data: bytes) -> None:
        """Keep a response's old log-probs beside its batch; written once, later writes change nothing."""
        if self.read_old_logprobs(position, response) is None:
            self._rows.add(OLD_LOGPROBS, position, response, *self._segments.append((data,)))

    # ---- segments

    def release_segments(self, oldest_retained_step: int) -> list[int]:
        """Delete segments whose groups every retained checkpoint already contains; returns their numbers.

        Groups that never train (too old) keep a segment no longer than their neighbours do. The running transaction
        is committed first: only rows that will be found again may take the place of a file.
        """
        self.commit()
        return self._segments.release(lambda segment: is_needed(self, segment, oldest_retained_step))


def num_changes(ledger: Ledger) -> int:
    """Rows written by this start so far, those not committed included."""
    return ledger._db.total_changes


def expect_meta(ledger: Ledger, key: str, value: str, advice: str) -> None:
    """Set a word about the run the first time and hold later starts to it; raises LedgerError with the advice."""
    found = ledger.meta(key)
    if found is None:
        ledger.set_meta(key, value)
    elif found != value:
        raise LedgerError(f"{ledger.folder}: the run in this folder has {key} {found}, now it is {value}; {advice}")


def write_evaluation(ledger: Ledger, row: EvaluationRow) -> None:
    """Keep an evaluation that begins, or how it has ended."""
    ledger._rows.put(EVALUATIONS, *dataclasses.astuple(row))


def write_evaluation_result(ledger: Ledger, evaluation: int, problem: int, result: Any) -> None:
    """Keep what was answered to a problem, once: raises LedgerError where there is an answer already."""
    ledger._rows.add(EVALUATION_RESULTS, evaluation, problem, json.dumps(result))


def _floats(values: Sequence[float]) -> str:
    """Text that gives the same floats back, bit for bit."""
    return " ".join(map(repr, values))
