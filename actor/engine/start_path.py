"""A path to start an engine from that stays the same while the folder behind it changes."""

import fcntl
import os
from itertools import count
from pathlib import Path

from dcpo_async.errors import WeightsError
from dcpo_async.weights.locks import has_lock, let_go


class StartPath:
    """A link `engine-N/model` to whatever folder an engine starts from.

    vLLM looks for its compiled code under a key that holds the model's path: each start from another version's folder
    would compile anew, for a minute or more. Each process of a machine takes the lowest number that no other holds
    (flock, which the kernel drops when a process dies), so that no link moves under another one's engine, and a process
    that takes the place of a dead one finds what that one compiled.

    Args:
        parent: of this user alone, and the same for all starts of a run; made when it is needed.
    """

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        self._held: tuple[Path, int] | None = None

    def to(self, folder: Path) -> Path:
        """Point the link to a folder, once what was started from it before has ended; returns the link.

        Raises:
            WeightsError: another user owns the parent, and could change what is loaded.
        """
        if self._held is None:
            self._held = self._hold_lowest()
        place, _ = self._held
        made = place / "next"
        made.unlink(missing_ok=True)
        made.symlink_to(folder.absolute(), target_is_directory=True)
        return made.rename(place / "model")

    def close(self) -> None:
        """Remove the link and let its number go."""
        if self._held is None:
            return
        place, lock = self._held
        self._held = None
        (place / "model").unlink(missing_ok=True)
        place.rmdir()
        let_go(lock)

    def _hold_lowest(self) -> tuple[Path, int]:
        for path in (self._parent.parent, self._parent):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Of the link itself, where it is one: another user could point it elsewhere later.
            if (owner := path.lstat().st_uid) not in (os.getuid(), 0):
                raise WeightsError(f"{path} belongs to user {owner}, not {os.getuid()}: a model there is not safe")
        for number in count():
            place = self._parent / f"engine-{number}"
            if (lock := _lock(place)) is not None:
                return place, lock
        raise AssertionError


def _lock(place: Path) -> int | None:
    """Make a folder and lock it for this process alone; None where another one holds it."""
    while True:
        place.mkdir(mode=0o700, exist_ok=True)
        try:
            lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        if not has_lock(lock, fcntl.LOCK_EX):
            os.close(lock)
            return None
        # Who held it may have removed it between our opening and our locking.
        if place.exists() and os.fstat(lock).st_ino == place.stat().st_ino:
            return lock
        let_go(lock)
