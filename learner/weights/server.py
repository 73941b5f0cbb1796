"""The weight server's process: hands out manifests and stretches of the versions in the learner's store."""

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from dcpo_async.errors import DcpoError
from dcpo_async.limits import limited_log
from dcpo_async.processes import until_told
from dcpo_async.protocol.codec import SPOKEN_WITH_ACTORS
from dcpo_async.transport.key_files import load_server_keys
from dcpo_async.transport.zmq_channel import listening_to_requests
from dcpo_async.weight_serving.service import serve

log = logging.getLogger("weight_server")


async def _serve_until_told(options: argparse.Namespace) -> None:
    curve = load_server_keys(options.keys) if options.keys else None
    channel = listening_to_requests(options.listen, curve, options.insecure, SPOKEN_WITH_ACTORS)
    log.info("serving the weights of run %s on port %d", options.run_id, channel.port)
    try:
        await until_told(serve(channel, options.store, options.run_id, curve.admission if curve else None))
    finally:
        channel.close()


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits 0 on SIGTERM, 2 when it cannot listen, 1 on a failure."""
    limited_log()
    parser = argparse.ArgumentParser(prog="learner.weights.server", description="Serve published weights.")
    parser.add_argument("--listen", required=True, help="address, such as tcp://127.0.0.1:5558")
    parser.add_argument("--store", required=True, type=Path, help="folder of the weight store")
    parser.add_argument("--run-id", required=True)
    parser.add_argument("--keys", type=Path, help="folder of the CURVE keys")
    parser.add_argument("--insecure", action="store_true", help="listen off loopback without keys")
    try:
        asyncio.run(_serve_until_told(parser.parse_args(argv)))
    except DcpoError as error:
        print(f"dcpo-learner: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
