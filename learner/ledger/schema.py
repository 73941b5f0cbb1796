"""The tables of a ledger, and what makes those of earlier releases today's."""

import contextlib
import sqlite3

from dcpo_async.errors import LedgerError
from learner.ledger.rows import Rows, Table, damaged

LEDGER_NAME = "ledger.sqlite"
LEDGER_FORMAT = 4
"""Format of tables and segments together; 4 brought evaluations, 3 digests of rows, 2 numbered formats of groups, 1 had
no number."""
ROWS_HAVE_DIGESTS = 3
"""The first format in which they have."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, row_digest INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS starts (
    incarnation INTEGER PRIMARY KEY, began_at TEXT NOT NULL, release TEXT NOT NULL,
    settings TEXT NOT NULL, changes TEXT NOT NULL, row_digest INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS prompts (
    prompt_id TEXT PRIMARY KEY, problem TEXT NOT NULL, answer TEXT NOT NULL, row_digest INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS visits (
    position INTEGER PRIMARY KEY, prompt_id TEXT NOT NULL, visit INTEGER NOT NULL,
    attempt INTEGER NOT NULL, failures INTEGER NOT NULL, weights_step INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('leased', 'accepted', 'too_old', 'discarded', 'quarantined')),
    row_digest INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS visits_by_prompt ON visits (prompt_id);
CREATE TABLE IF NOT EXISTS groups (
    position INTEGER PRIMARY KEY REFERENCES visits(position), segment INTEGER NOT NULL,
    byte_offset INTEGER NOT NULL, num_bytes INTEGER NOT NULL, digest TEXT NOT NULL,
    rewards TEXT NOT NULL, advantages TEXT NOT NULL, format INTEGER NOT NULL, row_digest INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS groups_by_segment ON groups (segment);
CREATE TABLE IF NOT EXISTS prompt_stats (
    prompt_id TEXT PRIMARY KEY, visits INTEGER NOT NULL, count INTEGER NOT NULL,
    sum_nano INTEGER NOT NULL, sum_sq_nano TEXT NOT NULL, row_digest INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS steps (
    step INTEGER NOT NULL, place INTEGER NOT NULL, position INTEGER NOT NULL UNIQUE REFERENCES groups(position),
    row_digest INTEGER NOT NULL, PRIMARY KEY (step, place)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS versions (
    weights_version INTEGER PRIMARY KEY, step INTEGER NOT NULL, incarnation INTEGER NOT NULL,
    row_digest INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS old_logprobs (
    position INTEGER NOT NULL, response INTEGER NOT NULL, segment INTEGER NOT NULL,
    byte_offset INTEGER NOT NULL, num_bytes INTEGER NOT NULL, digest TEXT NOT NULL, row_digest INTEGER NOT NULL,
    PRIMARY KEY (position, response)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS old_logprobs_by_segment ON old_logprobs (segment);
CREATE TABLE IF NOT EXISTS quarantines (
    position INTEGER PRIMARY KEY, prompt_id TEXT NOT NULL, reason TEXT NOT NULL, is_released INTEGER NOT NULL,
    row_digest INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS evaluations (
    evaluation INTEGER PRIMARY KEY, weights_version INTEGER NOT NULL, step INTEGER NOT NULL,
    num_problems INTEGER NOT NULL, settings TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('running', 'complete', 'incomplete')), reason TEXT NOT NULL,
    row_digest INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS evaluation_results (
    evaluation INTEGER NOT NULL REFERENCES evaluations(evaluation), problem INTEGER NOT NULL, result TEXT NOT NULL,
    row_digest INTEGER NOT NULL, PRIMARY KEY (evaluation, problem)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS totals (
    name TEXT PRIMARY KEY, num_rows INTEGER NOT NULL, digest_sum INTEGER NOT NULL, row_digest INTEGER NOT NULL
) WITHOUT ROWID;
"""
BEGAN_IN_MILLIONTHS = "began_in_millionths"
"""A word about a run whose first rewards were rounded to millionths, so that their sums cannot be counted again."""
COUNTED_IN_BILLIONTHS = (
    "UPDATE prompt_stats SET sum_micro = sum_micro * 1000, sum_sq_micro = sum_sq_micro || '000000'",
    "ALTER TABLE prompt_stats RENAME COLUMN sum_micro TO sum_nano",
    "ALTER TABLE prompt_stats RENAME COLUMN sum_sq_micro TO sum_sq_nano",
)
"""What makes statistics of a ledger from before billionths, counted in millionths, those of this release."""
NUMBERED_FORMATS = ("ALTER TABLE groups ADD COLUMN format INTEGER NOT NULL DEFAULT 1",)
"""What tells the groups of a ledger from before numbered formats from those that are added to it."""
KEPT_REASON = "failed too often, in an earlier release"
"""What quarantined the prompts of a ledger from before reasons were kept."""


def _tables() -> dict[str, Table]:
    """Every table but the totals, as SCHEMA has it."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(SCHEMA)
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        found = {}
        for name in names:
            columns = connection.execute(f"PRAGMA table_info({name})").fetchall()
            found[name] = Table(name, tuple(row[1] for row in columns[:-1]), sum(row[5] > 0 for row in columns))
    del found["totals"]
    return found


TABLES = _tables()
META, STARTS, PROMPTS, VISITS, GROUPS = (TABLES[name] for name in ["meta", "starts", "prompts", "visits", "groups"])
PROMPT_STATS, STEPS, VERSIONS = (TABLES[name] for name in ["prompt_stats", "steps", "versions"])
OLD_LOGPROBS, QUARANTINES = TABLES["old_logprobs"], TABLES["quarantines"]
EVALUATIONS, EVALUATION_RESULTS = TABLES["evaluations"], TABLES["evaluation_results"]


def prepare_tables(rows: Rows) -> None:
    """Make the tables that a new ledger, or one of an earlier release, has not; the running transaction goes on.

    Raises LedgerError for the ledger of a later release, and one whose number is not that of its tables.
    """
    ((found,),) = rows.query("PRAGMA user_version")
    names = {name for (name,) in rows.query("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if found > LEDGER_FORMAT:
        raise LedgerError(
            f"{rows.path} is a ledger of format {found}, this release knows formats up to {LEDGER_FORMAT}: "
            "use the release that wrote it, or a later one"
        )
    if found >= ROWS_HAVE_DIGESTS:
        rows.read_totals()
        _add_evaluations(rows, found)
        return
    if "totals" in names:
        raise damaged(rows.path, f"its number says format {found}, its tables are those of format {LEDGER_FORMAT}")
    old = [table for table in TABLES.values() if table.name in names]
    began_in_millionths = "sum_micro" in _columns(rows, "prompt_stats")
    _bring_up(rows, names)
    for table in old:
        rows.query(f"ALTER TABLE {table.name} RENAME TO old_{table.name}")
    for statement in SCHEMA.split(";"):
        rows.query(statement)
    for table in old:
        for row in rows.each(f"SELECT {', '.join(table.columns)} FROM old_{table.name}"):
            rows.add(table, *row)
        rows.query(f"DROP TABLE old_{table.name}")
    if "quarantines" not in names:
        _keep_quarantines(rows)
    if began_in_millionths:
        rows.put(META, BEGAN_IN_MILLIONTHS, "yes")
    _finish(rows)


def _add_evaluations(rows: Rows, found: int) -> None:
    """Make the tables that format 4 brought, where they are not there; the others have to be as format 3 wrote them."""
    if found == LEDGER_FORMAT:
        return
    rows.check_totals([table for table in TABLES.values() if table not in (EVALUATIONS, EVALUATION_RESULTS)])
    for statement in SCHEMA.split(";"):
        rows.query(statement)
    _finish(rows)


def _finish(rows: Rows) -> None:
    """The tables are those of this release."""
    rows.query(f"PRAGMA user_version = {LEDGER_FORMAT}")
    rows.count_schema()
    rows.write_totals()


def _bring_up(rows: Rows, names: set[str]) -> None:
    """Give the tables of an earlier release the columns of format 2, and take away its indices."""
    if "sum_micro" in _columns(rows, "prompt_stats"):
        _execute(rows, COUNTED_IN_BILLIONTHS)
    if "groups" in names and "format" not in _columns(rows, "groups"):
        _execute(rows, NUMBERED_FORMATS)
    for (index,) in rows.query("SELECT name FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL"):
        rows.query(f"DROP INDEX {index}")


def _keep_quarantines(rows: Rows) -> None:
    """Quarantine what an earlier release had quarantined without saying why."""
    query = "SELECT MIN(position), prompt_id FROM visits WHERE state = 'quarantined' GROUP BY prompt_id"
    for position, prompt_id in rows.query(query):
        rows.add(QUARANTINES, position, prompt_id, KEPT_REASON, 0)


def _columns(rows: Rows, table: str) -> list[str]:
    return [row[1] for row in rows.query(f"PRAGMA table_info({table})")]


def _execute(rows: Rows, statements: tuple[str, ...]) -> None:
    for statement in statements:
        rows.query(statement)
