"""Lifts the quarantine of prompts in the ledger of a run whose learner has been stopped."""

import contextlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from dcpo_async.errors import LedgerError
from learner.ledger.schema import LEDGER_NAME, prepare_tables

LOCK_SECONDS = 1.0
"""How long to wait for a learner that is just ending."""


def release_prompts(folder: Path, prompt_ids: Sequence[str]) -> None:
    """Let prompts be leased again, each at its next regular visit, from the next start of the learner on.

    What was quarantined, and why, stays in the ledger.

    Raises:
        LedgerError: a learner is running on the folder, or the ledger cannot be written.
    """
    path = folder / LEDGER_NAME
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("BEGIN IMMEDIATE")
            prepare_tables(connection, path)
            connection.executemany(
                "UPDATE quarantines SET is_released = 1 WHERE prompt_id = ?", [(name,) for name in prompt_ids]
            )
            connection.execute("COMMIT")
    except sqlite3.Error as error:
        is_locked = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
        problem = "a learner is running on this folder; stop it first, without --dismiss its actors wait"
        raise LedgerError(f"{path}: {problem if is_locked else error}") from error
