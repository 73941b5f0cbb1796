"""Reads a ledger that a learner may be writing to: takes no lock, changes nothing in its folder, makes a copy."""

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from dcpo_async.errors import LedgerError
from learner.ledger.acknowledged import Acknowledged, read_acknowledged
from learner.ledger.checking import check, check_pages
from learner.ledger.reader import LedgerReader
from learner.ledger.rows import Rows, translated
from learner.ledger.schema import LEDGER_NAME, prepare_tables

MAX_COPIES = 20
WAL_HEADER_BYTES = 32
"""Two random numbers in it change whenever SQLite begins to write the log from its start again."""


@contextlib.contextmanager
def open_copy(folder: Path, *, is_checked: bool = False) -> Iterator[LedgerReader]:
    """A reader of the ledger in a folder, as of one commit between the call and its return.

    Do not call it in a process that has the ledger open itself: closing any descriptor of a file drops the locks that
    the process has on it.

    Args:
        is_checked: read all of it first, since rows that are missing cannot be seen in those that are read.

    Raises:
        LedgerError: there is no ledger, it is damaged, or it cannot be copied.
    """
    path = folder / LEDGER_NAME
    if not path.is_file():
        raise LedgerError(f"{path}: no such file; name the folder of a run that has been started")
    # Before the copy: a learner may go on meanwhile.
    acknowledged = read_acknowledged(folder) if is_checked else None
    with tempfile.TemporaryDirectory(prefix="dcpo-") as scratch:
        copy = Path(scratch) / LEDGER_NAME
        try:
            copy_consistently(path, copy)
        except OSError as error:
            raise LedgerError(f"{path}: cannot be copied to {copy}: {error}") from error
        with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as connection:
            rows = Rows(connection, path)
            if is_checked:
                check_pages(rows)
            # A learner that is just starting has not made every table, and one of an earlier release made others.
            rows.query("BEGIN")
            prepare_tables(rows)
            if is_checked:
                check(rows, acknowledged)
            yield LedgerReader(folder, rows)


def take_copy(folder: Path, to: Path) -> int | None:
    """Copy a ledger's file and its log, as of one commit, into another folder; the next call is `settle_copy`.

    It takes as long as its bytes do: files that its rows point to can be opened right after it, before they are gone.
    Read page by page under SQLite's own locks it could not be where the ledger lies on a network's file system, whose
    learner locks all others out (`learner.ledger.lock`); and nothing of a reader holds up that learner's commits.

    Args:
        folder: of the ledger, that a learner may be writing to.
        to: a folder; no learner reads it yet.

    Returns:
        The commits that had been acknowledged before, where that is known.

    Raises:
        LedgerError: there is no ledger, or it cannot be copied.
    """
    path = folder / LEDGER_NAME
    if not path.is_file():
        raise LedgerError(f"{path}: no such file; name the folder of a run that has been started")
    acknowledged = read_acknowledged(folder)
    try:
        copy_consistently(path, to / LEDGER_NAME)
    except OSError as error:
        raise translated(path, error) from error
    return acknowledged


def settle_copy(folder: Path, to: Path, acknowledged: int | None) -> None:
    """Make a ledger without segments of what `take_copy` has copied, once its rows are checked.

    Args:
        folder: that it was copied from, for messages.
        to: that it was copied into.
        acknowledged: as `take_copy` said.

    Raises:
        LedgerError: it is damaged, or the disk refuses.
    """
    path = folder / LEDGER_NAME
    try:
        with contextlib.closing(sqlite3.connect(to / LEDGER_NAME, isolation_level=None)) as connection:
            # One file from here on: what the log holds is moved into the database, in a transaction.
            connection.execute("PRAGMA journal_mode=DELETE")
            rows = Rows(connection, path)
            check_pages(rows)
            rows.query("BEGIN IMMEDIATE")
            prepare_tables(rows)
            check(rows, acknowledged)
            rows.query("COMMIT")
        with contextlib.closing(Acknowledged(to)) as file:
            file.write(rows.commits)
    except (sqlite3.Error, OSError) as error:
        raise translated(path, error) from error


@contextlib.contextmanager
def new_tables(folder: Path) -> Iterator[Rows]:
    """Rows of a ledger that is made in a folder; they are checked and durable when the block ends.

    Raises LedgerError where they do not fit together, or the disk refuses.
    """
    path = folder / LEDGER_NAME
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            rows = Rows(connection, path)
            rows.query("BEGIN IMMEDIATE")
            prepare_tables(rows)
            yield rows
            rows.write_totals()
            check(rows, None)
            rows.query("COMMIT")
        with contextlib.closing(Acknowledged(folder)) as file:
            file.write(rows.commits)
    except (sqlite3.Error, OSError) as error:
        raise translated(path, error) from error


def copy_consistently(path: Path, copy: Path, copy_file: Callable[[Path, Path], object] = shutil.copyfile) -> None:
    """Copy the database, then its log; again if the log was begun anew meanwhile.

    As long as the log is only appended to, every page that reaches the database while it is copied is in the log too,
    and SQLite reads pages from the log first. A commit that is half copied fails its checksum and is left out.

    Args:
        copy_file: copies the bytes of one file into another.

    Raises:
        LedgerError: the log was begun anew during each of MAX_COPIES copies.
    """
    wal, wal_copy = (database.with_name(f"{database.name}-wal") for database in (path, copy))
    for _ in range(MAX_COPIES):
        before = _generation(path, wal)
        copy_file(path, copy)
        wal_copy.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            copy_file(wal, wal_copy)
        if _generation(path, wal) == before:
            return
    raise LedgerError(f"{path}: its log began anew during each of {MAX_COPIES} copies; try again")


def _generation(path: Path, wal: Path) -> tuple[bytes, int]:
    """What differs when the log was begun anew, or a learner has come and gone without leaving one."""
    try:
        with wal.open("rb") as file:
            header = file.read(WAL_HEADER_BYTES)
    except FileNotFoundError:
        header = b""
    return header, 0 if header else path.stat().st_mtime_ns
