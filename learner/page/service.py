"""What `dcpo serve` does once its options are read: the server, and what looks at the runs beside it."""

import argparse
import logging
import signal

from dcpo_async.errors import ConfigError
from dcpo_async.monitoring.alerts import Teller
from dcpo_async.monitoring.listen import checked_listen
from dcpo_async.monitoring.server import MonitorServer, WatchedRun
from learner.page.app import page_routes
from learner.page.runs import ServedRun, Watcher, named_folders

log = logging.getLogger("monitor")


def serve(options: argparse.Namespace) -> None:
    """Answer until SIGTERM or SIGINT; raises ConfigError for options that cannot be."""
    folders = named_folders(options.runs)
    host, port, token = checked_listen(options.http, options.http_token)
    if options.alert_webhook and not options.alert_webhook.startswith(("http://", "https://")):
        raise ConfigError(f"--alert-webhook {options.alert_webhook}: expected http://… or https://…")
    watched = {name: WatchedRun(folder, options.learner_pid) for name, folder in folders.items()}
    runs = {name: ServedRun(name, folder, watched[name]) for name, folder in folders.items()}
    server = MonitorServer(watched, host, port, token, page_routes(runs))
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
