"""Whether a learner can be reached: by the first bytes that ZeroMQ's protocol sends (ZMTP 3, RFC 23), and no more."""

import socket
from collections.abc import Iterator

from dcpo_async.doctor.findings import Finding, error
from dcpo_async.transport.security import tcp_parts

ANSWER_SECONDS = 5.0
GREETING_BYTES = 64
SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
BEGINNING = SIGNATURE + b"\x03\x00"
"""Of a greeting: the other side answers with the whole of its own, and hangs up at a mechanism that is not its."""


def reachable(address: str, has_keys: bool | None, seconds: float = ANSWER_SECONDS) -> Iterator[Finding]:
    """Whether a learner answers at an address, and whether it asks for keys as this side has them or not.

    Args:
        has_keys: None where that is not the question.
    """
    parts = tcp_parts(address)
    if parts is None:
        yield error(f"{address} is no address", "write tcp://HOST:PORT, port 5557 where the learner says nothing else")
        return
    host, port = parts
    try:
        with socket.create_connection((host, port), timeout=seconds) as connection:
            connection.sendall(BEGINNING)
            greeting = _received(connection)
    except socket.gaierror as failure:
        yield error(f"{host} has no address: {failure.strerror}", "is the name right, and known on this machine?")
    except TimeoutError:
        yield error(
            f"{host}:{port} does not answer within {seconds:g} s", "a firewall, or another network: open the port"
        )
    except OSError as failure:
        yield error(
            f"{host}:{port}: {failure.strerror}",
            "is the learner up, and does it listen there (--network.listen tcp://0.0.0.0:5557 for other machines)?",
        )
    else:
        yield from _judged(f"{host}:{port}", greeting, has_keys)


def _judged(where: str, greeting: bytes, has_keys: bool | None) -> Iterator[Finding]:
    if len(greeting) < GREETING_BYTES or greeting[0] != 0xFF or not greeting[9] & 1:
        yield error(f"at {where} something answers that is no learner", "is the port right?")
        return
    mechanism = greeting[12:32].rstrip(b"\x00").decode("ascii", "replace")
    if mechanism == "CURVE" and has_keys is False:
        yield error(
            f"the learner at {where} asks for keys",
            "pass --keys with the file that `dcpo keygen` made for this machine",
        )
    if mechanism == "NULL" and has_keys:
        yield error(f"the learner at {where} goes without keys", "start it with --keys, or leave --keys away here")


def _received(connection: socket.socket) -> bytes:
    found = b""
    while len(found) < GREETING_BYTES and (part := connection.recv(GREETING_BYTES - len(found))):
        found += part
    return found
