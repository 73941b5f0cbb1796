"""How many commits of a ledger were ever acknowledged, in a small file beside it.

SQLite leaves out whatever follows a damaged place in its log, and a database that was put back is as old as its copy:
both look like a sound ledger, of an earlier moment. This number tells them from one that was merely killed.
"""

import os
from pathlib import Path

import xxhash

from learner.ledger.rows import damaged

_NAME = "ledger.commits"


class Acknowledged:
    """Writes the number into the file of a ledger's folder; it survives a kill, and may lag after a power failure."""

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / _NAME, os.O_WRONLY | os.O_CREAT, 0o600)

    def write(self, commits: int) -> None:
        """Commit number `commits` is durable, and may be acknowledged."""
        os.pwrite(self._file, _text(commits), 0)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


def read_acknowledged(folder: Path) -> int | None:
    """The number of commits; None where nothing was ever acknowledged; raises LedgerError where it is damaged."""
    path = folder / _NAME
    if not path.exists() or not (data := path.read_bytes()):
        return None
    digits = data[:20]
    if not digits.isdigit() or data != _text(int(digits)):
        raise damaged(path, "it holds no number of commits with its digest")
    return int(digits)


def _text(commits: int) -> bytes:
    digits = f"{commits:020d}"
    return f"{digits} {xxhash.xxh3_64_hexdigest(digits.encode())}\n".encode()
