"""Who may talk to whom: addresses, and the CURVE keys that an address off this machine needs."""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from dcpo_async.errors import ConfigError

_TCP = re.compile(r"tcp://(?:\[(?P<ipv6>[0-9a-fA-F:.]+)\]|(?P<host>[^\s/:\[\]]+)):(?P<port>\d{1,5}|\*)")
_IPC = re.compile(r"ipc://\S(?:.*\S)?")
_Z85_KEY = re.compile(rb"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")


@dataclass(frozen=True, slots=True)
class CurveServer:
    """What the learner needs: its own key pair, and the key that its actors show."""

    public: bytes
    secret: bytes = field(repr=False)
    client_public: bytes


@dataclass(frozen=True, slots=True)
class CurveClient:
    """What an actor needs: the key pair that all actors share, and the learner's public key."""

    public: bytes
    secret: bytes = field(repr=False)
    server_public: bytes


def check_address(address: str, has_keys: bool, insecure: bool) -> None:
    """Refuse an address that is malformed, or that leaves this machine without authentication.

    Args:
        address: tcp://host:port or ipc://path; port 0 or * stands for any free port.
        has_keys: CURVE keys are in use.
        insecure: the user wants to go without them.

    Raises:
        ConfigError: says what is allowed.
    """
    tcp = _TCP.fullmatch(address)
    if tcp is None and _IPC.fullmatch(address) is None:
        raise ConfigError(f"{address!r} is no address; write tcp://host:port or ipc://path")
    if tcp is not None and tcp["port"] != "*" and int(tcp["port"]) > 65535:
        raise ConfigError(f"{address}: port {tcp['port']} does not exist; the last is 65535")
    if tcp is None or has_keys or insecure or is_loopback(tcp["ipv6"] or tcp["host"]):
        return
    raise ConfigError(
        f"{address} is not on this machine alone, and no keys are given: make them with `dcpo keygen` and "
        "pass their folder with --keys on both sides, or pass --insecure on a network where all are trusted"
    )


def tcp_parts(address: str) -> tuple[str, int] | None:
    """Host and port of an address that `check_address` lets pass, port 0 for any free one; None for ipc."""
    tcp = _TCP.fullmatch(address)
    return None if tcp is None else (tcp["ipv6"] or tcp["host"], 0 if tcp["port"] == "*" else int(tcp["port"]))


def write_keys(folder: Path, keys: Mapping[str, tuple[bytes, bytes]]) -> None:
    """Write pairs of (public, secret) as NAME.public, readable by all, and NAME.secret, by the owner alone.

    Raises:
        ConfigError: one of the files is there already; keys in use are never replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, pair in keys.items():
        for suffix, key, mode in (("public", pair[0], 0o644), ("secret", pair[1], 0o600)):
            path = folder / f"{name}.{suffix}"
            try:
                path.touch(mode, exist_ok=False)
            except FileExistsError:
                raise ConfigError(f"{path} exists; remove it, or choose another folder for new keys") from None
            path.chmod(mode)
            path.write_bytes(key + b"\n")


def load_server_keys(folder: Path) -> CurveServer:
    """The learner's keys: server.public, server.secret, client.public.

    Raises:
        ConfigError: a file is missing or holds no key, or others can read the secret.
    """
    return CurveServer(
        _read(folder / "server.public"), _read(folder / "server.secret"), _read(folder / "client.public")
    )


def load_client_keys(folder: Path) -> CurveClient:
    """An actor's keys: client.public, client.secret, server.public; raises ConfigError as for the server."""
    return CurveClient(
        _read(folder / "client.public"), _read(folder / "client.secret"), _read(folder / "server.public")
    )


def relay_server(keys: CurveClient) -> CurveServer:
    """What a relay listens with: the pair that all actors share, which it admits alone."""
    return CurveServer(keys.public, keys.secret, client_public=keys.public)


def relay_client(keys: CurveClient) -> CurveClient:
    """What an actor shows a relay, from which it expects the same pair."""
    return replace(keys, server_public=keys.public)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine to itself alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read(path: Path) -> bytes:
    try:
        key = path.read_bytes().strip()
        mode = path.stat().st_mode & 0o777
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; `dcpo keygen` writes keys") from None
    if _Z85_KEY.fullmatch(key) is None:
        raise ConfigError(f"{path} holds no key; `dcpo keygen` writes keys")
    if path.suffix == ".secret" and mode & 0o077:
        raise ConfigError(f"{path} can be read by others (mode {mode:o}); run chmod 600 on it")
    return key
