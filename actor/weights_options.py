"""The options about weights of the launcher and its engine processes; refused before anything heavy is loaded."""

import argparse
import logging
import socket
from pathlib import Path

from dcpo_async.errors import ConfigError
from dcpo_async.transport.key_files import for_relay, load_peer_keys
from dcpo_async.transport.security import check_address, is_loopback, tcp_parts

log = logging.getLogger("actor")


def add_weights_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that both have."""
    group = parser.add_argument_group("weights")
    group.add_argument(
        "--weights-folder", type=Path, help="folder for versions of the weights (default: shared memory, else /tmp)"
    )
    group.add_argument(
        "--copy-weights", action="store_true", help="on the learner's machine too, fetch its files and do not use them"
    )
    group.add_argument(
        "--weights-from",
        help="relay to fetch from, such as tcp://10.0.0.7:5560, with keys tcp://HOST:PORT/KEY (default: the learner "
        "names one)",
    )


def add_relay_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the launcher alone."""
    group = parser.add_argument_group("relay: hands on this machine's versions of the weights to other actors")
    group.add_argument("--no-relay", action="store_true", help="run none")
    group.add_argument(
        "--relay-listen",
        help="its address, such as tcp://10.0.0.7:5560 (default: any free port of the address by which this machine "
        "reaches the learner; none where that is a loopback address)",
    )
    group.add_argument("--relay-mbps", type=float, help="megabytes a second that it sends at most (default: no bound)")


def weights_words(options: argparse.Namespace) -> list[str]:
    """The shared options again as command-line words, for a child process."""
    words = ["--weights-folder", str(options.weights_folder)] if options.weights_folder else []
    words += ["--copy-weights"] if options.copy_weights else []
    return [*words, "--weights-from", options.weights_from] if options.weights_from else words


def checked_relay(options: argparse.Namespace) -> tuple[str, str]:
    """Where this machine's relay listens, and under which address others find it; both empty for no relay.

    Raises:
        ConfigError: the options contradict each other, or an address is malformed, taken, or needs keys.
    """
    asked = options.weights_from
    if asked is not None and options.keys is not None:
        asked, _ = for_relay(load_peer_keys(options.keys), asked)
    for address in (asked, options.relay_listen):
        if address is not None:
            check_address(address, has_keys=options.keys is not None, insecure=options.insecure)
    if options.relay_mbps is not None and not options.relay_mbps > 0:
        raise ConfigError(f"--relay-mbps {options.relay_mbps:g} must be above 0; --no-relay runs none")
    if options.no_relay:
        if options.relay_listen is not None or options.relay_mbps is not None:
            raise ConfigError("--no-relay runs no relay, so --relay-listen and --relay-mbps have no use")
        return "", ""
    own = _own_host(options.learner)
    if options.relay_listen is not None:
        host, port = _parts(options.relay_listen, "--relay-listen")
    elif own == "" or is_loopback(own):
        # Actors there use the learner's own files, and nobody else could reach the relay.
        return "", ""
    else:
        host, port = own, 0
    is_any = host in ("*", "0.0.0.0", "::")
    if is_any and own == "":
        raise ConfigError(f"--relay-listen {options.relay_listen}: name the address that other machines reach")
    port = port or _free_port(own if is_any else host)
    return _address(host, port), _address(own if is_any else host, port)


def _parts(address: str, option: str) -> tuple[str, int]:
    parts = tcp_parts(address)
    if parts is None:
        raise ConfigError(f"{option} {address}: machines are reached by tcp://host:port only")
    return parts


def _own_host(learner: str) -> str:
    """This machine's address on the way to the learner; empty where there is no such way by TCP."""
    parts = tcp_parts(learner)
    if parts is None:
        return ""
    try:
        family, kind, _, _, there = socket.getaddrinfo(*parts, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            # Of a datagram socket: nothing is sent.
            probe.connect(there)
            return str(probe.getsockname()[0])
    except OSError as error:
        log.warning("no relay runs here: the way to %s is not known: %s", learner, error)
        return ""


def _free_port(host: str) -> int:
    """One that the relay, started again, can have again: other machines know it."""
    try:
        family, kind, _, _, here = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.bind(here)
            return int(probe.getsockname()[1])
    except OSError as error:
        raise ConfigError(f"a relay cannot listen on {host}: {error.strerror}") from None


def _address(host: str, port: int) -> str:
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
