"""The relay's process: hands on the versions in this machine's cache; the launcher starts it."""

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from dcpo_async.errors import DcpoError
from dcpo_async.limits import limited_log
from dcpo_async.processes import until_told
from dcpo_async.protocol.codec import SPOKEN_BY_RELAYS
from dcpo_async.transport.interfaces import Router
from dcpo_async.transport.key_files import CurveServer, load_peer_keys
from dcpo_async.transport.pacing import PacedRouter
from dcpo_async.transport.zmq_channel import connecting, listening_to_requests
from dcpo_async.weight_serving.admitted import GRACE_SECONDS, AdmittedByLearner
from dcpo_async.weight_serving.relaying import Relay

log = logging.getLogger("relay")

MB = 1e6


def offer(path: Path, run_id: str, cache_folder: Path, weights_address: str) -> None:
    """Let the relay hand on the versions of one run, and of no other that this user may have on this machine.

    Args:
        path: that the relay was started with.
        weights_address: of the run's weight server, which knows whose keys are admitted.
    """
    unfinished = path.with_name(f"{path.name}-new")
    words = {"run_id": run_id, "folder": str(cache_folder), "weights_address": weights_address}
    unfinished.write_text(json.dumps(words))
    unfinished.rename(path)


def offered(path: Path, run_id: str) -> Path | None:
    """The cache folder of a run, where it was offered."""
    said = _said(path)
    return Path(said["folder"]) if said and said["run_id"] == run_id else None


def weight_server(path: Path) -> tuple[str, str] | None:
    """The run that was offered, and the address of its weight server."""
    said = _said(path)
    return (said["run_id"], said["weights_address"]) if said else None


def _said(path: Path) -> dict[str, str] | None:
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return None


async def _serve_until_told(options: argparse.Namespace) -> None:
    admitted = curve = None
    if options.keys:
        keys = load_peer_keys(options.keys)
        connect = connecting(keys, insecure=False, send_timeout_seconds=GRACE_SECONDS)
        admitted = AdmittedByLearner(lambda: weight_server(options.offer), connect)
        curve = CurveServer(keys.public, keys.secret, admitted)
    channel: Router = listening_to_requests(options.listen, curve, options.insecure, SPOKEN_BY_RELAYS)
    if options.mbps:
        channel = PacedRouter(channel, options.mbps * MB)
    log.info("handing on weights on port %d", channel.port)
    following = asyncio.create_task(admitted.follow()) if admitted else None
    try:
        await until_told(Relay(channel, lambda run_id: offered(options.offer, run_id)).serve())
    finally:
        if following:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        channel.close()


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits 0 on SIGTERM, 2 when it cannot listen, 1 on a failure."""
    limited_log()
    parser = argparse.ArgumentParser(prog="actor.weights.relay", description="Hand on weights; dcpo-actor starts it.")
    parser.add_argument("--listen", required=True, help="address, such as tcp://10.0.0.7:5560")
    parser.add_argument("--offer", required=True, type=Path, help="file that says which cache may be handed on")
    parser.add_argument("--mbps", type=float, help="megabytes a second that are sent at most")
    parser.add_argument("--keys", type=Path, help="file of this machine's CURVE keys")
    parser.add_argument("--insecure", action="store_true", help="listen off loopback without keys")
    try:
        asyncio.run(_serve_until_told(parser.parse_args(argv)))
    except DcpoError as error:
        print(f"dcpo-actor: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
