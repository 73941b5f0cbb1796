"""How a coordinator bears a fleet: `python -m bench.fleet`, or `--actors 10 100 1000 2000`.

A real coordinator with a ledger on disk on one core, simulated actors with real sessions and sockets on the other; each
holds one lease, and together they send so many groups a second (8 responses of 200 tokens). The gate is always open.
"""

import argparse
import asyncio
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil

from bench.fleet.actors import Seen, crowd

LEARNER_CORE, ACTORS_CORE = 0, 1


def main() -> None:
    """Run each size, and print a line for it."""
    parser = argparse.ArgumentParser(prog="bench.fleet", description=__doc__)
    parser.add_argument("--actors", type=int, nargs="+", default=[10, 100, 1000, 2000])
    parser.add_argument("--groups-per-second", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=40.0)
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.sched_setaffinity(0, {ACTORS_CORE})
    for number in options.actors:
        print(measured(number, options.groups_per_second, options.seconds), flush=True)


def measured(number: int, groups_per_second: float, seconds: float) -> str:
    """A line on so many actors."""
    with tempfile.TemporaryDirectory() as folder:
        argv = [sys.executable, "-m", "bench.fleet.learner", folder, str(number)]
        with (Path(folder) / "log").open("w") as log:
            learner = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            os.sched_setaffinity(learner.pid, {LEARNER_CORE})
            assert learner.stdout is not None
            address = learner.stdout.readline().strip()
            if not address:
                return f"{number} actors: the coordinator did not start: {(Path(folder) / 'log').read_text()[-500:]}"
            # Every actor has its second lease by then.
            warm_up = 10.0 + 2.0 * number / groups_per_second
            return asyncio.run(_observed(learner.pid, address, number, groups_per_second, seconds, warm_up))
        finally:
            learner.kill()
            learner.wait()


async def _observed(pid: int, address: str, number: int, rate: float, seconds: float, warm_up: float) -> str:
    process = psutil.Process(pid)
    at_start = asyncio.get_running_loop().create_task(_after(warm_up, process))
    seen = await crowd(address, number, rate, seconds, warm_up)
    spent = _core_seconds(process) - await at_start
    return _told(number, seen, spent, seconds, process.memory_info().rss)


async def _after(seconds: float, process: psutil.Process) -> float:
    await asyncio.sleep(seconds)
    return _core_seconds(process)


def _core_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _told(number: int, seen: Sequence[Seen], core_seconds: float, seconds: float, rss: int) -> str:
    groups = sum(each.groups for each in seen)
    return (
        f"{number} actors, {groups / seconds:.1f} groups/s: "
        f"ack p50 {_percentile([each.acks for each in seen], 50):.1f} ms, "
        f"p99 {_percentile([each.acks for each in seen], 99):.1f}; "
        f"lease p50 {_percentile([each.leases for each in seen], 50):.1f} ms, "
        f"p99 {_percentile([each.leases for each in seen], 99):.1f}; "
        f"coordinator {1000 * core_seconds / max(1, groups):.2f} ms of processor time a group, "
        f"{rss / 2**20:.0f} MiB"
    )


def _percentile(lists: Sequence[Sequence[float]], percent: float) -> float:
    values = [value for each in lists for value in each]
    return 1000 * float(np.percentile(values, percent)) if values else float("nan")


if __name__ == "__main__":
    main()
