"""Rows of SQLite that are checked: each carries a digest of its content, and each table's digests add up to a total.

The digest names the row that is damaged, whenever it is read; the total shows rows that are missing.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from dcpo_async.durable import DISK_IS_FULL
from dcpo_async.errors import LedgerError

Row = tuple[Any, ...]

WAY_BACK = "put back a copy of the whole folder from before the damage, or begin a new run in another --folder"
COMMITS = "commits"
"""The row of the totals that counts commits; the others are named after their tables."""
_SCHEMA_ROWS = "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' ORDER BY name"
_BITS = 64


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose rows have digests.

    Attributes:
        columns: all but the digest, which is the last; the first `num_keys` of them are the key.
    """

    name: str
    columns: tuple[str, ...]
    num_keys: int

    @property
    def width(self) -> int:
        """Columns with the digest."""
        return len(self.columns) + 1

    def key_of(self, row: Row) -> str:
        """The key of a row, for people: "position 3"."""
        return ", ".join(f"{name} {value}" for name, value in zip(self.columns[: self.num_keys], row, strict=False))


TOTALS = Table("totals", ("name", "num_rows", "digest_sum"), 1)


def damaged(path: Path, what: str) -> LedgerError:
    """What to raise where a file of the ledger is not as it was written."""
    return LedgerError(f"{path} is damaged: {what}; {WAY_BACK}")


def row_digest(name: str, values: Sequence[Any]) -> int:
    """The xxh3_64 of a row's content in the table `name`, as a signed number.

    Raises TypeError for bytes, which no row holds.
    """
    return _signed(xxhash.xxh3_64_intdigest(json.dumps([name, *values]).encode()))


class Rows:
    """Reads and writes the rows behind a connection.

    Args:
        connection: whose transactions the caller begins and ends.
        path: of the ledger, for errors; the connection may be to a copy.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        # A text whose bytes are damaged is for its digest to find.
        connection.text_factory = lambda data: data.decode(errors="surrogateescape")
        self.path, self._connection = path, connection
        self._num_rows, self._sums = Counter[str](), Counter[str]()
        self._changed = set[str]()

    @property
    def commits(self) -> int:
        """Transactions that have changed something since the ledger's beginning."""
        return self._num_rows[COMMITS]

    def query(self, sql: str, values: Sequence[Any] | dict[str, Any] = ()) -> list[Row]:
        """What a statement gives; raises LedgerError for whatever SQLite has against it."""
        try:
            return self._connection.execute(sql, values).fetchall()
        except (sqlite3.Error, OverflowError, UnicodeDecodeError) as error:
            raise translated(self.path, error) from error

    def each(self, sql: str) -> Iterator[Row]:
        """The same, row by row: a whole table may be large."""
        try:
            yield from self._connection.execute(sql)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise translated(self.path, error) from error

    # ---- reading

    def find(self, table: Table, condition: str = "", values: Sequence[Any] = ()) -> list[Row]:
        """Rows without their digests, which they match; raises LedgerError where one does not.

        Args:
            condition: what follows the table's name, such as WHERE or ORDER BY.
        """
        return [self.checked(table, row) for row in self.query(f"SELECT * FROM {table.name} {condition}", values)]

    def checked(self, table: Table, row: Row) -> Row:
        """A row without its digest, which it matches; raises LedgerError where it does not."""
        content = row[:-1]
        try:
            is_sound = row_digest(table.name, content) == row[-1]
        except TypeError:
            is_sound = False
        if not is_sound:
            raise damaged(self.path, f"table {table.name}, {table.key_of(row)}: the row does not match its digest")
        return content

    # ---- writing

    def add(self, table: Table, *row: Any) -> None:
        """Write a row that is not there yet; raises LedgerError where it is."""
        self._insert("INSERT", table, row)

    def put(self, table: Table, *row: Any) -> None:
        """Write a row, in the place of the one with its key."""
        condition = " AND ".join(f"{column} = ?" for column in table.columns[: table.num_keys])
        for (digest,) in self.query(f"SELECT row_digest FROM {table.name} WHERE {condition}", row[: table.num_keys]):
            self._num_rows[table.name] -= 1
            self._sums[table.name] -= digest
        self._insert("INSERT OR REPLACE", table, row)

    def _insert(self, verb: str, table: Table, row: Row) -> None:
        digest = row_digest(table.name, row)
        self.query(f"{verb} INTO {table.name} VALUES ({', '.join('?' * (len(row) + 1))})", (*row, digest))
        self._num_rows[table.name] += 1
        self._sums[table.name] += digest
        self._changed.add(table.name)

    # ---- totals

    def count_schema(self) -> None:
        """The tables are made: whatever describes them is counted too."""
        self._num_rows["schema"], self._sums["schema"] = self._schema()
        self._changed.add("schema")

    def read_totals(self) -> None:
        """Begin with the totals that the ledger has."""
        for name, num_rows, digest_sum in self.find(TOTALS):
            self._num_rows[name], self._sums[name] = num_rows, digest_sum

    def write_totals(self) -> bool:
        """Before a commit: one more, and what has changed since the last; returns whether anything has."""
        if not self._changed:
            return False
        self._num_rows[COMMITS] += 1
        for name in (*self._changed, COMMITS):
            row = (name, self._num_rows[name], _signed(self._sums[name]))
            self.query("INSERT OR REPLACE INTO totals VALUES (?, ?, ?, ?)", (*row, row_digest("totals", row)))
        self._changed.clear()
        return True

    def check_totals(self, tables: Sequence[Table]) -> None:
        """Read every row of these tables and what makes them; raises LedgerError where one is not as it was written."""
        found = {"schema": self._schema()}
        for table in tables:
            num_rows = digest_sum = 0
            for row in self.each(f"SELECT * FROM {table.name}"):
                self.checked(table, row)
                num_rows, digest_sum = num_rows + 1, digest_sum + row[-1]
            found[table.name] = num_rows, _signed(digest_sum)
        for name, (num_rows, digest_sum) in found.items():
            if (num_rows, digest_sum) != (self._num_rows[name], _signed(self._sums[name])):
                what = f"table {name}: its {num_rows} rows are not the {self._num_rows[name]} that were written"
                raise damaged(self.path, what)

    def _schema(self) -> tuple[int, int]:
        rows = self.query(_SCHEMA_ROWS)
        return len(rows), _signed(sum(row_digest("schema", row) for row in rows))


def translated(path: Path, error: Exception) -> LedgerError:
    """What an error of SQLite or of the disk means to the user."""
    if isinstance(error, UnicodeDecodeError):
        return damaged(path, "the names of its tables are no text")
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    if code == sqlite3.SQLITE_BUSY:
        return LedgerError(f"{path}: another learner is running on this folder; stop it or choose another --folder")
    if code == sqlite3.SQLITE_FULL or getattr(error, "errno", None) in DISK_IS_FULL:
        return LedgerError(
            f"{path}: the disk, or what may be written to it, is full ({error}); make room and start the same command "
            "again, nothing that was acknowledged is lost"
        )
    if code == sqlite3.SQLITE_IOERR:
        # Whose cause SQLite keeps to itself, unless the disk is full.
        return LedgerError(
            f"{path}: {error}; see whether the disk works, and whether a quota or a limit to files is used up; "
            "the same command goes on, nothing that was acknowledged is lost"
        )
    is_damage = code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISMATCH)
    return damaged(path, f"SQLite says {error}") if is_damage else LedgerError(f"{path}: {error}")


def _signed(number: int) -> int:
    """The number of 64 bits with a sign that has the same last 64 bits: SQLite's integers."""
    number %= 1 << _BITS
    return number - (1 << _BITS) if number >> (_BITS - 1) else number
