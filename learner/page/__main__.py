"""The process that answers over HTTP for runs: a child of a learner, or beside it, or after it (`dcpo serve`)."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dcpo_async.errors import DcpoError
from dcpo_async.limits import plain_log
from dcpo_async.monitoring.listen import DEFAULT_LISTEN

NICENESS = 10
"""Behind the learner's own processes, where cores are scarce."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; ends with SIGTERM, and exits 2 on bad input."""
    options = _parser().parse_args(argv)
    plain_log()
    os.nice(NICENESS)
    # The web server and what reads ledgers take a second, which a look at the options must not cost.
    from learner.page.service import serve

    try:
        serve(options)
    except DcpoError as error:
        print(f"dcpo serve: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dcpo serve",
        description="Answer over HTTP for runs, from their folders alone: a page at /, /metrics for Prometheus, "
        "/healthz, /readyz and /status.json. Beside a learner or after it; it writes nothing.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, or NAME=FOLDER")
    parser.add_argument("--http", default=DEFAULT_LISTEN, metavar="HOST:PORT", help="default %(default)s")
    parser.add_argument("--http-token", type=Path, metavar="FILE", help="off loopback: what requests must bear")
    parser.add_argument("--alert-command", metavar="COMMAND", help="run for each event, which it gets as JSON")
    parser.add_argument("--alert-webhook", metavar="URL", help="http(s) address that each event is posted to as JSON")
    parser.add_argument("--learner-pid", type=int, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
