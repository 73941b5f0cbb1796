"""The process that answers over HTTP for runs: a child of a learner, or beside it, or after it (`dcpo serve`)."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from dcpo_async.errors import ConfigError, DcpoError
from dcpo_async.monitoring.alerts import Teller
from dcpo_async.monitoring.server import DEFAULT_LISTEN, MonitorServer, WatchedRun, checked_listen
from learner.page.app import page_routes
from learner.page.runs import ServedRun, Watcher, named_folders

log = logging.getLogger("monitor")

NICENESS = 10
"""Behind the learner's own processes, where cores are scarce."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; ends with SIGTERM, and exits 2 on bad input."""
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    os.nice(NICENESS)
    try:
        folders = named_folders(options.runs)
        host, port, token = checked_listen(options.http, options.http_token)
        if options.alert_webhook and not options.alert_webhook.startswith(("http://", "https://")):
            raise ConfigError(f"--alert-webhook {options.alert_webhook}: expected http://… or https://…")
        watched = {name: WatchedRun(folder, options.learner_pid) for name, folder in folders.items()}
        runs = {name: ServedRun(name, folder, watched[name]) for name, folder in folders.items()}
        server = MonitorServer(watched, host, port, token, page_routes(runs))
    except DcpoError as error:
        print(f"dcpo serve: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.shutdown())
    log.info("http://%s:%d/ and /metrics /healthz /readyz /status.json", host, server.server_address[1])
    if options.alert_command or options.alert_webhook:
        for run in watched.values():
            Teller(run.look, options.alert_command, options.alert_webhook).start()
    Watcher(list(runs.values())).start()
    server.serve_forever()
    server.server_close()
    for served in runs.values():
        served.window.close()


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
