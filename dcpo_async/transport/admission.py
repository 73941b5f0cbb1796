"""Which keys are let in, and as whom: by a folder of public keys that is read anew while a service runs."""

import asyncio
import logging
import os
import re
import time
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Literal, get_args

from dcpo_async.errors import ConfigError
from dcpo_async.limits import quoted

log = logging.getLogger("keys")

Role = Literal["actor", "evaluator", "rank"]
ROLES: tuple[Role, ...] = get_args(Role)
SUFFIX = ".key"
LOOK_SECONDS, ASK_SECONDS = 1.0, 0.1
FILES_SECONDS = 10.0
"""A file that is written over in its place changes nothing in the folder itself: all are looked at now and then."""
MAX_FORMER = 10_000
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
KEY = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
"""A CURVE key in Z85."""

_Stamp = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class KeyHolder:
    """Whoever has the secret of a key: what it is called, what it may be, and the public key in Z85."""

    name: str
    role: Role
    key: str


class Admission:
    """The keys that are let in as things stand.

    Attributes:
        version: goes up with each change.
        digest: of all that are let in.
    """

    def __init__(self, holders: Iterable[KeyHolder] = ()) -> None:
        self.version, self.digest = 0, ""
        self._holders: dict[str, KeyHolder] = {}
        self._former: dict[str, str] = {}
        self.replace(holders)

    @property
    def holders(self) -> list[KeyHolder]:
        """All that are let in, in the order of their names."""
        return list(self._holders.values())

    def holder_of(self, key: str) -> KeyHolder | None:
        """Whose key this is; None for one that is not let in."""
        return self._holders.get(key)

    def described(self, key: str) -> str:
        """A key that is not let in, for people: whose it was, or how it begins."""
        former = self._former.get(key)
        return f"the key of {former} is revoked" if former else f"key {quoted(key[:8])}… is not admitted"

    def replace(self, holders: Iterable[KeyHolder]) -> None:
        """Let these in, and no others."""
        found = {holder.key: holder for holder in sorted(holders, key=lambda holder: holder.name)}
        if found == self._holders:
            return
        self._former.update({key: holder.name for key, holder in self._holders.items() if key not in found})
        while len(self._former) > MAX_FORMER:
            del self._former[next(iter(self._former))]
        self._former = {key: name for key, name in self._former.items() if key not in found}
        self._holders, self.version = found, self.version + 1
        lines = "".join(f"{holder.name} {holder.role} {holder.key}\n" for holder in found.values())
        self.digest = blake2b(lines.encode(), digest_size=16).hexdigest()

    async def watch(self) -> None:
        """Take in what changes, until cancelled."""

    async def ask(self) -> None:
        """A key came that is not known: look whether it is by now."""


class AdmittedFolder(Admission):
    """A file NAME.key for each holder, with role and public key; whoever writes there decides who is let in.

    A file that cannot be read admits nobody, nor does a folder that is not there any more. Files are read by a thread
    beside the event loop, one at a time: a disk that is slow, or hangs, holds up nobody who is admitted.

    Args:
        clock: seconds; the folder is looked at once in `LOOK_SECONDS`, each file in it once in `FILES_SECONDS`.

    Raises:
        ConfigError: there is no such folder, or others can write to it.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._folder, self._clock = folder, clock
        self._seen: dict[str, tuple[_Stamp, KeyHolder | None]] = {}
        try:
            mode = folder.stat().st_mode & 0o777
        except OSError as error:
            raise ConfigError(f"{folder}: {error.strerror}; `dcpo keygen` writes keys") from None
        if mode & 0o022:
            raise ConfigError(f"{folder} can be changed by others (mode {mode:o}); run chmod 700 on it")
        self._turn = asyncio.Lock()
        self._looked_at = self._listed_at = clock()
        self._changed_at = self._folder_changed_at()
        self.replace(self._read_anew(self._stamps()))

    async def watch(self) -> None:
        """Look once in LOOK_SECONDS, until cancelled."""
        while True:
            await self._look_beside(LOOK_SECONDS / 2)
            await asyncio.sleep(LOOK_SECONDS)

    async def ask(self) -> None:
        """Look again, sooner, and once for all who ask meanwhile: a key may have been admitted just now."""
        await asyncio.sleep(self._looked_at + ASK_SECONDS - self._clock())
        await self._look_beside(ASK_SECONDS)

    async def _look_beside(self, pause_seconds: float) -> None:
        async with self._turn:
            await asyncio.to_thread(self.look, pause_seconds)

    def look(self, pause_seconds: float = LOOK_SECONDS) -> None:
        """Read what is new or has changed, unless that was done less than `pause_seconds` ago."""
        now = self._clock()
        if now - self._looked_at < pause_seconds:
            return
        self._looked_at = now
        folder_changed_at = self._folder_changed_at()
        if folder_changed_at == self._changed_at and now - self._listed_at < FILES_SECONDS:
            return
        self._changed_at, self._listed_at = folder_changed_at, now
        stamps = self._stamps()
        if stamps == {name: stamp for name, (stamp, _) in self._seen.items()}:
            return
        before, after = set(self.holders), set(self._read_anew(stamps))
        for words, holders in (("no longer admitted", before - after), ("admitted from now on", after - before)):
            if holders:
                log.info("%s: %s", words, quoted(", ".join(sorted(holder.name for holder in holders))))
        self.replace(after)

    def _read_anew(self, stamps: dict[str, _Stamp]) -> list[KeyHolder]:
        self._seen = {
            name: self._seen[name]
            if name in self._seen and self._seen[name][0] == stamp
            else (stamp, self._holder(name))
            for name, stamp in stamps.items()
        }
        holders = dict[str, KeyHolder]()
        for _, holder in self._seen.values():
            if holder is not None and holders.setdefault(holder.key, holder) is not holder:
                log.error("%s and %s have one key: the first name holds", holders[holder.key].name, holder.name)
        return list(holders.values())

    def _folder_changed_at(self) -> int:
        """When a file in it was made, moved or removed last."""
        try:
            return self._folder.stat().st_mtime_ns
        except OSError:
            return 0

    def _stamps(self) -> dict[str, _Stamp]:
        found: dict[str, os.stat_result] | None
        try:
            with os.scandir(self._folder) as entries:
                found = {entry.name: entry.stat() for entry in entries if entry.name.endswith(SUFFIX)}
        except FileNotFoundError:
            # A file that goes while the folder is listed is looked for again in a second.
            found = {} if not self._folder.is_dir() else None
        except OSError as error:
            log.error("%s: %s; nobody is admitted before it can be read", self._folder, error.strerror)
            found = {}
        if found is None:
            return {name: stamp for name, (stamp, _) in self._seen.items()}
        return {
            name: (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_size)
            for name, stat in sorted(found.items())
        }

    def _holder(self, file_name: str) -> KeyHolder | None:
        path = self._folder / file_name
        try:
            return read_holder(path)
        except ConfigError as error:
            log.error("%s; nobody is admitted by it", quoted(error))
            return None


def read_holder(path: Path) -> KeyHolder:
    """Who is admitted by a file; raises ConfigError where it cannot be read or says anything else."""
    said = read_words(path, {"role", "public"})
    name = path.name.removesuffix(SUFFIX)
    if NAME.fullmatch(name) is None:
        raise ConfigError(f"{path}: {name!r} is no name of a peer; letters, digits, '.', '_' and '-' make one")
    return KeyHolder(name, checked_role(path, said["role"]), checked_key(path, said["public"]))


def read_words(path: Path, names: set[str]) -> dict[str, str]:
    """The words of a file of keys, in TOML; raises ConfigError where they are not these."""
    try:
        said = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; `dcpo keygen` writes keys") from None
    except ValueError:
        said = {}
    if said.keys() != names or not all(isinstance(word, str) for word in said.values()):
        raise ConfigError(f"{path} holds no key; `dcpo keygen` writes keys")
    return said


def checked_role(path: Path, word: str) -> Role:
    """A role as it is; raises ConfigError where it is none."""
    for role in ROLES:
        if role == word:
            return role
    raise ConfigError(f"{path}: the role {quoted(word)} is none of {', '.join(ROLES)}")


def checked_key(path: Path, key: str) -> str:
    """A key as it is; raises ConfigError where it is none."""
    if KEY.fullmatch(key) is None:
        raise ConfigError(f"{path} holds no key; `dcpo keygen` writes keys")
    return key
