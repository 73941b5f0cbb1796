"""Addresses: which are those of this machine alone, and which need CURVE keys."""

import ipaddress
import re

from dcpo_async.errors import ConfigError

_TCP = re.compile(r"tcp://(?:\[(?P<ipv6>[0-9a-fA-F:.]+)\]|(?P<host>[^\s/:\[\]]+)):(?P<port>\d{1,5}|\*)")
_IPC = re.compile(r"ipc://\S+")


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
        "pass them with --keys on both sides, or pass --insecure on a network where all are trusted"
    )


def tcp_parts(address: str) -> tuple[str, int] | None:
    """Host and port of an address that `check_address` lets pass, port 0 for any free one; None for ipc."""
    tcp = _TCP.fullmatch(address)
    return None if tcp is None else (tcp["ipv6"] or tcp["host"], 0 if tcp["port"] == "*" else int(tcp["port"]))


def is_loopback(host: str) -> bool:
    """Whether a host is this machine to itself alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
