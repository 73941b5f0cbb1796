"""The tables of a ledger, and what makes those of earlier releases today's."""

import sqlite3
from pathlib import Path

from dcpo_async.errors import LedgerError

LEDGER_NAME = "ledger.sqlite"
LEDGER_FORMAT = 2
"""Format of tables and segments together; 1 is that of the releases that did not number it."""
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
    rewards TEXT NOT NULL, advantages TEXT NOT NULL, format INTEGER NOT NULL DEFAULT 1
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
    weights_version INTEGER PRIMARY KEY AUTOINCREMENT, step INTEGER NOT NULL, incarnation INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS old_logprobs (
    position INTEGER NOT NULL, response INTEGER NOT NULL, segment INTEGER NOT NULL,
    byte_offset INTEGER NOT NULL, num_bytes INTEGER NOT NULL, digest TEXT NOT NULL,
    PRIMARY KEY (position, response)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS old_logprobs_by_segment ON old_logprobs (segment);
CREATE TABLE IF NOT EXISTS quarantines (
    position INTEGER PRIMARY KEY, prompt_id TEXT NOT NULL, reason TEXT NOT NULL,
    is_released INTEGER NOT NULL DEFAULT 0
);
"""
COUNTED_IN_BILLIONTHS = (
    "UPDATE prompt_stats SET sum_micro = sum_micro * 1000, sum_sq_micro = sum_sq_micro || '000000'",
    "ALTER TABLE prompt_stats RENAME COLUMN sum_micro TO sum_nano",
    "ALTER TABLE prompt_stats RENAME COLUMN sum_sq_micro TO sum_sq_nano",
)
"""What makes statistics of a ledger from before billionths, counted in millionths, those of this release."""
NUMBERED_FORMATS = ("ALTER TABLE groups ADD COLUMN format INTEGER NOT NULL DEFAULT 1",)
"""What tells the groups of a ledger from before numbered formats from those that are added to it."""
KEPT_REASONS = (
    "INSERT INTO quarantines (position, prompt_id, reason) "
    "SELECT MIN(position), prompt_id, 'failed too often, in an earlier release' FROM visits "
    "WHERE state = 'quarantined' GROUP BY prompt_id",
)
"""What quarantines the prompts of a ledger from before quarantine could be lifted."""


def prepare_tables(connection: sqlite3.Connection, path: Path) -> None:
    """Make the tables that a new ledger, or one of an earlier release, has not; the running transaction goes on.

    Raises LedgerError for the ledger of a later release.
    """
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if found > LEDGER_FORMAT:
        raise LedgerError(
            f"{path} is a ledger of format {found}, this release knows formats up to {LEDGER_FORMAT}: "
            "use the release that wrote it, or a later one"
        )
    is_without_reasons = not _columns(connection, "quarantines")
    for statement in SCHEMA.split(";"):
        connection.execute(statement)
    if "sum_micro" in _columns(connection, "prompt_stats"):
        _execute(connection, COUNTED_IN_BILLIONTHS)
    if "format" not in _columns(connection, "groups"):
        _execute(connection, NUMBERED_FORMATS)
    if is_without_reasons:
        _execute(connection, KEPT_REASONS)
    connection.execute(f"PRAGMA user_version = {LEDGER_FORMAT}")


def _columns(connection: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]


def _execute(connection: sqlite3.Connection, statements: tuple[str, ...]) -> None:
    for statement in statements:
        connection.execute(statement)
