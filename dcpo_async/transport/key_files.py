"""The files of CURVE keys: a pair of the learner's, one for each peer, and what the learner admits them by.

KEYS/server.public, server.secret    the learner's own
KEYS/admitted/NAME.key               a peer's role and public key: it is let in as long as this file is there
KEYS/peers/NAME.keys                 what that peer needs, to be copied to its machine
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from dcpo_async.errors import ConfigError
from dcpo_async.transport.admission import (
    KEY,
    NAME,
    SUFFIX,
    Admission,
    AdmittedFolder,
    Role,
    checked_key,
    checked_role,
    read_words,
)

_RELAY = re.compile(rf"(?P<address>tcp://[^/]+)/(?P<key>{KEY.pattern})")

Pair = tuple[bytes, bytes]
"""Public and secret key in Z85."""


@dataclass(frozen=True, slots=True)
class CurveServer:
    """What a listening end needs: its own key pair, and who is let in."""

    public: bytes
    secret: bytes = field(repr=False)
    admission: Admission


@dataclass(frozen=True, slots=True)
class CurveClient:
    """What a peer needs: its own key pair, and the public key of whoever it talks to."""

    name: str
    role: Role
    public: bytes
    secret: bytes = field(repr=False)
    server_public: bytes


def write_server_keys(folder: Path, pair: Pair) -> None:
    """Write the learner's pair, and make room for those of peers.

    Raises:
        ConfigError: there are keys already; keys in use are never replaced.
    """
    _refuse_shared(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _new_files(folder / "server.public", folder / "server.secret") as (public, secret):
        public.chmod(0o644)
        public.write_bytes(pair[0] + b"\n")
        secret.write_bytes(pair[1] + b"\n")
    for part in ("admitted", "peers"):
        (folder / part).mkdir(mode=0o700, exist_ok=True)


def write_peer_keys(folder: Path, name: str, role: Role, pair: Pair) -> Path:
    """Write a peer's pair, and admit it; returns the file that its machine needs.

    Raises:
        ConfigError: there is no learner's pair in the folder, or there are keys of this name.
    """
    if NAME.fullmatch(name) is None:
        raise ConfigError(f"{name!r} cannot name a peer: letters, digits, '.', '_' and '-', at most 64, make a name")
    server = _server_key(folder / "server.public")
    words = {"role": role, "public": pair[0].decode()}
    own = {"name": name, **words, "secret": pair[1].decode(), "server": server.decode()}
    for part in ("admitted", "peers"):
        (folder / part).mkdir(mode=0o700, exist_ok=True)
    admitted, peer = folder / "admitted" / f"{name}{SUFFIX}", folder / "peers" / f"{name}.keys"
    if admitted.exists():
        raise ConfigError(f"{admitted} exists; `dcpo revoke {folder} {name}` makes room for new keys")
    with _new_files(peer) as (file,):
        file.write_text(f"# Keys of {role} {name}, for its machine alone: --keys names this file there.\n{_toml(own)}")
    # Under its name only once it is whole: a learner may be looking.
    with _new_files(admitted.with_suffix(".new")) as (file,):
        file.write_text(_toml(words))
        file.rename(admitted)
    return peer


def revoke(folder: Path, name: str) -> None:
    """Admit a peer no longer, and remove the copy of its keys; raises ConfigError where it is not admitted."""
    admitted = folder / "admitted" / f"{name}{SUFFIX}"
    if NAME.fullmatch(name) is None or not admitted.exists():
        known = sorted(path.name.removesuffix(SUFFIX) for path in admitted.parent.glob(f"*{SUFFIX}"))
        raise ConfigError(f"{name!r} is not admitted in {folder}; admitted are: {', '.join(known) or 'none'}")
    admitted.unlink()
    (folder / "peers" / f"{name}.keys").unlink(missing_ok=True)


def load_server_keys(folder: Path) -> CurveServer:
    """The learner's keys, and who is admitted.

    Raises:
        ConfigError: a file is missing or holds no key, or others can read the secret or change who is admitted.
    """
    _refuse_shared(folder)
    public, secret = _server_key(folder / "server.public"), _server_key(folder / "server.secret")
    _refuse_readable(folder / "server.secret")
    return CurveServer(public, secret, AdmittedFolder(folder / "admitted"))


def load_peer_keys(file: Path) -> CurveClient:
    """A peer's keys, of the one file that `dcpo keygen` wrote for it; raises ConfigError as for the server."""
    if file.is_dir():
        raise ConfigError(
            f"{file} is a folder; --keys takes the file of this peer alone, KEYS/peers/NAME.keys, which "
            "`dcpo keygen KEYS --actor NAME` writes"
        )
    said = read_words(file, {"name", "role", "public", "secret", "server"})
    _refuse_readable(file)
    keys = [checked_key(file, said[name]).encode() for name in ("public", "secret", "server")]
    return CurveClient(said["name"], checked_role(file, said["role"]), *keys)


def for_relay(keys: CurveClient, relay: str) -> tuple[str, CurveClient]:
    """Address of a relay, and what this peer shows there; its own key is behind its address: tcp://HOST:PORT/KEY.

    Raises:
        ConfigError: no key is there, so that it could be anybody.
    """
    found = _RELAY.fullmatch(relay)
    if found is None:
        raise ConfigError(f"{relay}: write tcp://HOST:PORT/KEY, with the public key of the relay's machine")
    return found["address"], replace(keys, server_public=found["key"].encode())


@contextmanager
def _new_files(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Files that only their owner can read, made here; raises ConfigError where one is there already."""
    for path in paths:
        try:
            path.touch(0o600, exist_ok=False)
        except FileExistsError:
            raise ConfigError(f"{path} exists; remove it, or choose another folder for new keys") from None
        path.chmod(0o600)
    yield paths


def _toml(words: dict[str, str]) -> str:
    # No name and no key in Z85 has a quote or a backslash.
    return "".join(f'{name} = "{word}"\n' for name, word in words.items())


def _server_key(path: Path) -> bytes:
    try:
        key = path.read_text().strip()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; `dcpo keygen` writes keys") from None
    except ValueError:
        key = ""
    return checked_key(path, key).encode()


def _refuse_shared(folder: Path) -> None:
    if (old := folder / "client.public").exists():
        raise ConfigError(
            f"{old} is a key that all actors share, as there are none any more: make a new folder with "
            "`dcpo keygen KEYS`, and keys of its own for each peer with `dcpo keygen KEYS --actor NAME`"
        )


def _refuse_readable(path: Path) -> None:
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise ConfigError(f"{path} can be read by others (mode {mode:o}); run chmod 600 on it")
