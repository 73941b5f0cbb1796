"""The process that answers over HTTP for a run: a child of its learner, or beside it, or after it (`dcpo serve`)."""

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from dcpo_async.errors import ConfigError, DcpoError
from dcpo_async.limits import plain_log
from dcpo_async.monitoring.alerts import Teller
from dcpo_async.monitoring.server import DEFAULT_LISTEN, MonitorServer, WatchedRun, checked_listen

log = logging.getLogger("monitor")

NICENESS = 10
"""Behind the learner's own processes, where cores are scarce."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; ends with SIGTERM, and exits 2 on bad input."""
    parser = argparse.ArgumentParser(
        prog="dcpo serve",
        description="Answer over HTTP for a run, from its folder alone: /metrics for Prometheus, /healthz, /readyz and "
        "/status.json. Beside a learner or after it; it writes nothing.",
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--http", default=DEFAULT_LISTEN, metavar="HOST:PORT", help="default %(default)s")
    parser.add_argument("--http-token", type=Path, metavar="FILE", help="off loopback: what requests must bear")
    parser.add_argument("--alert-command", metavar="COMMAND", help="run for each event, which it gets as JSON")
    parser.add_argument("--alert-webhook", metavar="URL", help="http(s) address that each event is posted to as JSON")
    parser.add_argument("--learner-pid", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    plain_log()
    os.nice(NICENESS)
    try:
        if not options.run.is_dir():
            raise ConfigError(f"{options.run}: no such folder; name that of a run")
        host, port, token = checked_listen(options.http, options.http_token)
        if options.alert_webhook and not options.alert_webhook.startswith(("http://", "https://")):
            raise ConfigError(f"--alert-webhook {options.alert_webhook}: expected http://… or https://…")
        watched = WatchedRun(options.run, options.learner_pid)
        server = MonitorServer(watched, host, port, token)
    except DcpoError as error:
        print(f"dcpo serve: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    for number in (signal.SIGTERM, signal.SIGINT):
        # The server's loop runs in this thread, which its end must not wait for.
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    log.info("http://%s:%d/metrics /healthz /readyz /status.json", host, server.server_address[1])
    if options.alert_command or options.alert_webhook:
        Teller(watched.look, options.alert_command, options.alert_webhook).start()
    server.serve_forever()
    server.server_close()


if __name__ == "__main__":
    main()
