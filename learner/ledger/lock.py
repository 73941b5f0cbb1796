"""Who may write to a ledger: one process, which holds a lock file; and where its log can be shared with readers."""

import fcntl
import os
import time
from pathlib import Path
from typing import NoReturn

from dcpo_async.errors import LedgerError

LOCK_NAME = "ledger.lock"
LOCK_SECONDS = 1.0
"""How long to wait for a learner that is just ending."""
_OF_NETWORKS = "9p afs beegfs ceph cifs gfs2 gpfs lustre nfs nfs4 ocfs2 orangefs panfs pvfs2 smb3 smbfs vboxsf virtiofs"
NETWORK_FILE_SYSTEMS = frozenset(_OF_NETWORKS.split())


class WriterLock:
    """Held by the one process that writes to the ledger in a folder, and let go of when that process ends.

    Raises LedgerError where another process holds it, or the file system has no locks.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_NAME
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + LOCK_SECONDS
        while not self._is_taken():
            if time.monotonic() > deadline:
                self._refuse()
            time.sleep(0.05)
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()} on {os.uname().nodename}\n".encode(), 0)

    def close(self) -> None:
        """Let another process have it."""
        os.close(self._file)

    def _is_taken(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            os.close(self._file)
            raise LedgerError(
                f"{self._path}: {error.strerror}: two learners could write at once; mount the file system with locks "
                "(Lustre: -o flock), or choose a --folder on another"
            ) from error
        return True

    def _refuse(self) -> NoReturn:
        holder = os.pread(self._file, 100, 0).decode(errors="replace").strip()
        os.close(self._file)
        raise LedgerError(
            f"{self._path}: another learner is running on this folder (process {holder or 'unknown'}); "
            "stop it or choose another --folder"
        )


def holder(folder: Path) -> str | None:
    """Who writes to the ledger in a folder, "123 on machine"; None where nobody does."""
    try:
        file = os.open(folder / LOCK_NAME, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        # Shared: two that look at once do not see each other. It is let go of at once, which a start waits for.
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(file, 100, 0).decode(errors="replace").strip() or "unknown"
    except OSError as error:
        raise LedgerError(
            f"{folder / LOCK_NAME}: {error.strerror}: whether a learner is at work is not known"
        ) from error
    finally:
        os.close(file)
    return None


def is_on_network(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> bool:
    """Whether a folder lies on a file system of other machines, where SQLite cannot share its log with readers.

    Args:
        mounts: the kernel's list: device as the third field, the type of the file system behind the dash.
    """
    device = folder.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.read_text().splitlines():
        fields = line.split()
        if fields[2] == wanted:
            kind = fields[fields.index("-") + 1]
            return kind in NETWORK_FILE_SYSTEMS or kind.startswith("fuse.")
    return False
