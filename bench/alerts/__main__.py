"""python -m bench.alerts --model FOLDER: a scripted run is watched by `dcpo serve` and a Prometheus server of its own,
faults are provoked one after the other, and it is printed after how long each alert fired and was over.

Rules are those of deploy/prometheus with every duration divided by --speed-up, so that ten minutes without a step
become ten seconds. Needs Debian's package prometheus. Everything listens on loopback.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

from tests.system.services import Services, fill, small_disk, two_free_ports

RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "alerts.yml"
STEADY_SECONDS = 600.0
CONFIG = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [alerts.yml]
scrape_configs:
  - job_name: dcpo
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


def main() -> int:
    """Run the faults; 0 where each was told, and nothing was before."""
    parser = argparse.ArgumentParser(prog="bench.alerts", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a tiny model, such as that of tests/tiny_model.py")
    parser.add_argument("--speed-up", type=int, default=60)
    options = parser.parse_args()
    if shutil.which("prometheus") is None:
        print("prometheus is missing: apt-get install prometheus", file=sys.stderr)
        return 2
    with (
        tempfile.TemporaryDirectory() as name,
        Services(Path(name), options.model) as services,
        small_disk(services) as is_small,
    ):
        return watched(services, Path(name), options.speed_up, is_small)


def watched(services: Services, folder: Path, speed_up: int, is_small: bool) -> int:
    """Start the run and its watchers, provoke the faults, and end Prometheus."""
    monitor, server = two_free_ports(), two_free_ports()
    learner, actor = services.start_learner("--training.max_steps", "100000"), services.start_actor()
    services.until("the first steps", lambda: len(services.metrics()) >= 3, STEADY_SECONDS)
    services.start("dcpo_async.commands.cli", "serve", str(services.run), "--http", f"127.0.0.1:{monitor}")
    (folder / "alerts.yml").write_text(sped_up(RULES.read_text(), speed_up))
    (folder / "prometheus.yml").write_text(CONFIG.format(port=monitor))
    words = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "prometheus.log").open("wb") as log:
        prometheus = subprocess.Popen(
            ["prometheus", *words, f"--web.listen-address=127.0.0.1:{server}"], stdout=log, stderr=log
        )
    try:
        services.until("Prometheus to scrape", lambda: scrapes(server) and not firing(server), STEADY_SECONDS)
        print(f"healthy for 20 s: {healthy(server, 20.0) or 'no alert'}", flush=True)
        trainer = learner.child("learner.trainer.rank")
        assert trainer is not None
        told = [fault(server, "DcpoNoStep", "the trainer is stopped (SIGSTOP)", trainer.suspend)]
        print(f"  over {over(server, 'DcpoNoStep', trainer.resume):.0f} s after it went on", flush=True)
        told.append(fault(server, "DcpoNoActors", "the only actor is killed", actor.process.kill))
        back = over(server, "DcpoNoActors", lambda: services.start_actor())
        print(f"  over {back:.0f} s after another one was started", flush=True)
        if is_small:
            filling = services.run / "filling"
            told.append(fault(server, "DcpoDiskFull", "a disk of 64 MB is filled", lambda: fill(filling)))
            print(f"  over {over(server, 'DcpoDiskFull', filling.unlink):.0f} s after there was room", flush=True)
        else:
            print("no small disk: a tmpfs cannot be mounted here", flush=True)
        told.append(fault(server, "DcpoLearnerDead", "the learner is killed", learner.process.kill))
        return 0 if all(told) else 1
    finally:
        prometheus.send_signal(signal.SIGTERM)
        prometheus.wait()


def sped_up(rules: str, times: int) -> str:
    """Rules whose waits are shorter: `for:` and the ten minutes without a step."""
    rules = re.sub(r"for: (\d+)m", lambda found: f"for: {max(1, int(found[1]) * 60 // times)}s", rules)
    return rules.replace("> 600)", f"> {600 // times})").replace("> 10 * dcpo_seconds", "> 3 * dcpo_seconds")


def firing(server: int) -> set[str]:
    """Alerts that Prometheus tells at the moment."""
    with urlopen(f"http://127.0.0.1:{server}/api/v1/alerts", timeout=30) as answer:
        alerts = json.load(answer)["data"]["alerts"]
    return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}


def scrapes(server: int) -> bool:
    """Whether it has the run's own metrics."""
    try:
        with urlopen(f"http://127.0.0.1:{server}/api/v1/query?query=dcpo_step", timeout=30) as answer:
            return bool(json.load(answer)["data"]["result"])
    except OSError:
        return False


def healthy(server: int, seconds: float) -> set[str]:
    """What was told of a run that nothing was done to."""
    end, found = time.monotonic() + seconds, set[str]()
    while time.monotonic() < end:
        found |= firing(server)
        time.sleep(1)
    return found


def fault(server: int, alert: str, words: str, provoke: Callable[[], object]) -> bool:
    """Provoke a fault, and say after how long its alert was told, and what else was."""
    provoke()
    began = time.monotonic()
    is_told = until(alert, lambda: alert in firing(server))
    others = ", ".join(sorted(firing(server) - {alert})) or "nothing else"
    said = f"fires after {time.monotonic() - began:.0f} s" if is_told else "does not fire"
    print(f"{words}: {alert} {said}; {others}", flush=True)
    return is_told


def over(server: int, alert: str, mend: Callable[[], object]) -> float:
    """Mend a fault, and wait until its alert is over; seconds."""
    mend()
    began = time.monotonic()
    until(f"the end of {alert}", lambda: alert not in firing(server))
    return time.monotonic() - began


def until(what: str, condition: Callable[[], bool], seconds: float = 300.0) -> bool:
    """Wait for something; False, and a line, where it did not come."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.5)
    print(f"no {what} within {seconds:g} s", flush=True)
    return False


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
