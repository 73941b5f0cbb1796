"""Looks at a ledger that a learner may be writing to, again and again: where it stands, or else in a copy.

Nothing of the ledger is locked against its writer: SQLite's log lets readers see one commit while the next are written.
"""

import contextlib
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from dcpo_async.errors import LedgerError
from learner.ledger.copy import copy_consistently
from learner.ledger.lock import is_on_network
from learner.ledger.reader import LedgerReader
from learner.ledger.rows import Rows, translated
from learner.ledger.schema import LEDGER_FORMAT, LEDGER_NAME, prepare_tables

T = TypeVar("T")

BUSY_SECONDS = 2.0
COPY_SECONDS, COPY_TIMES = 15.0, 20.0
"""A copy is looked at for so long, and so many times what it took to make: copying shall cost little of the disk."""
TRIES = 3


@dataclass(frozen=True, slots=True)
class Sight:
    """A ledger as of one commit: what reads it, and its rows for queries that are only made to be shown."""

    reader: LedgerReader
    rows: Rows


class LedgerWindow:
    """Looks into the ledger in a folder; safe to use from several threads.

    Args:
        folder: of the ledger; it may be on a read-only file system, or on one of other machines.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / LEDGER_NAME
        self._wal = self._path.with_name(f"{LEDGER_NAME}-wal")
        self._lock = threading.Lock()
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._copied_at, self._copy_seconds = 0.0, 0.0

    def read(self, query: Callable[[Sight], T]) -> T:
        """What a query finds.

        Raises LedgerError where there is no ledger, or what is read of it is damaged.
        """
        if not self._path.is_file():
            raise LedgerError(f"{self._path}: no such file; name the folder of a run that has been started")
        for _ in range(TRIES):
            before = self._generation()
            try:
                with self._in_place(is_still=before is not None) as sight:
                    if sight is None:
                        break
                    found = query(sight)
            except LedgerError:
                if before == self._generation():
                    raise
                continue
            # Without a log nothing is locked: a learner may have begun to write meanwhile.
            if before is None or before == self._generation():
                return found
        return self._read_copy(query)

    def close(self) -> None:
        """Let go of the copy, where one was made."""
        with self._lock:
            if self._scratch is not None:
                self._scratch.cleanup()
                self._scratch = None

    def _generation(self) -> tuple[int, int] | None:
        """What changes when somebody writes to a ledger that has no log; None for one that has."""
        try:
            if self._wal.exists() and self._wal.stat().st_size > 0:
                return None
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size

    @contextlib.contextmanager
    def _in_place(self, *, is_still: bool) -> Iterator[Sight | None]:
        """The ledger itself; None where it cannot be read so.

        Args:
            is_still: it has no log, and opening it must not make one.
        """
        if is_on_network(self._folder):
            yield None
            return
        mode = "mode=ro&immutable=1" if is_still else "mode=ro"
        try:
            opened = sqlite3.connect(
                f"file:{quote(str(self._path.absolute()))}?{mode}", uri=True, timeout=BUSY_SECONDS, isolation_level=None
            )
        except sqlite3.Error:
            yield None
            return
        with contextlib.closing(opened) as connection:
            try:
                connection.execute("PRAGMA query_only=1")
                connection.execute("BEGIN")
                ((found,),) = connection.execute("PRAGMA user_version")
                connection.execute("SELECT COUNT(*) FROM sqlite_schema").fetchall()
            except sqlite3.OperationalError:
                found = None
            except sqlite3.Error as error:
                raise translated(self._path, error) from error
            # The tables of an earlier format are made anew, which a copy alone bears.
            yield self._sight(connection) if found == LEDGER_FORMAT else None

    def _sight(self, connection: sqlite3.Connection) -> Sight:
        rows = Rows(connection, self._path)
        return Sight(LedgerReader(self._folder, rows), rows)

    def _read_copy(self, query: Callable[[Sight], T]) -> T:
        with self._lock:
            copy = self._fresh_copy()
            with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as connection:
                sight = self._sight(connection)
                sight.rows.query("BEGIN")
                # What is made of an earlier format's tables is thrown away with the connection.
                prepare_tables(sight.rows)
                return query(sight)

    def _fresh_copy(self) -> Path:
        now = time.monotonic()
        if self._scratch is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="dcpo-")
        elif now - self._copied_at < max(COPY_SECONDS, COPY_TIMES * self._copy_seconds):
            return Path(self._scratch.name) / LEDGER_NAME
        copy = Path(self._scratch.name) / LEDGER_NAME
        try:
            copy_consistently(self._path, copy)
        except OSError as error:
            raise LedgerError(f"{self._path}: cannot be copied to {copy}: {error}") from error
        self._copied_at = time.monotonic()
        self._copy_seconds = self._copied_at - now
        return copy
