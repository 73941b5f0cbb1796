"""How a coordinator bears a fleet: `python -m bench.fleet`, or `--actors 10 100 1000 2000`.

A real coordinator with a ledger on disk on one core; on the other a rank that trains in no time, and simulated actors
with real sessions and sockets. Each holds one lease, and together they send so many groups a second (8 responses of 200
tokens). The gate is always open. A hundred of the actors have a process of their own, in which times are taken; the
others share one.

With `--forgeries 1000000` so many forged messages come in as well, from another process on the actors' core: what the
same actors did before and beside them, what the coordinator was handed, its memory, and whether any of it counted.
"""

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path

import numpy as np
import psutil

from bench.fleet.actors import GROUP_TOKENS, Seen, crowd

LEARNER_CORE, ACTORS_CORE = 0, 1
ALONE = 100
"""Actors in a process of their own: a real one does not wait until a thousand others have read their messages."""
QUIET_SECONDS = 15
"""Without forgeries, after which no more are waited for."""


def main() -> None:
    """Run each size, and print a line for it."""
    parser = argparse.ArgumentParser(prog="bench.fleet", description=__doc__)
    parser.add_argument("--actors", type=int, nargs="+", default=[10, 100, 1000, 2000])
    parser.add_argument("--groups-per-second", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--forgeries", type=int, default=0)
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.sched_setaffinity(0, {ACTORS_CORE})
    for number in options.actors:
        words = measured(number, options.groups_per_second, options.seconds, options.forgeries)
        print(words, flush=True)


def measured(number: int, groups_per_second: float, seconds: float, forgeries: int = 0) -> str:
    """What is to be said of so many actors."""
    with tempfile.TemporaryDirectory() as folder:
        argv = [sys.executable, "-m", "bench.fleet.learner", folder, str(number)]
        with (Path(folder) / "log").open("w") as log:
            learner = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, text=True)
        rank = None
        try:
            os.sched_setaffinity(learner.pid, {LEARNER_CORE})
            assert learner.stdout is not None
            told = learner.stdout.readline().split()
            if not told:
                return f"{number} actors: the coordinator did not start: {(Path(folder) / 'log').read_text()[-500:]}"
            address, *of_ranks = told
            rank = subprocess.Popen([sys.executable, "-m", "bench.fleet.rank", *of_ranks])
            # Every actor has its second lease by then.
            warm_up = 10.0 + 2.0 * number / groups_per_second
            if forgeries:
                besieged = _besieged(learner.pid, Path(folder), address, number, groups_per_second, seconds, forgeries)
                return asyncio.run(besieged)
            said = asyncio.run(_observed(learner.pid, address, number, groups_per_second, seconds, warm_up))
            return said if rank.poll() is None else f"{number} actors: the rank ended, with code {rank.returncode}"
        finally:
            for process in (learner, rank) if rank else (learner,):
                process.kill()
                process.wait()


async def _observed(pid: int, address: str, number: int, rate: float, seconds: float, warm_up: float) -> str:
    process = psutil.Process(pid)
    at_start = asyncio.get_running_loop().create_task(_after(warm_up, process))
    alone = min(number, ALONE)
    times = (number / rate, seconds, warm_up)
    words = [address, str(alone), str(number), *map(str, times)]
    others = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.fleet.actors", *words, stdout=asyncio.subprocess.PIPE
    )
    try:
        seen = await crowd(address, range(alone), *times)
        spent = _core_seconds(process) - await at_start
        told, _ = await others.communicate()
    finally:
        if others.returncode is None:
            others.kill()
    crowded = [Seen(**each) for each in json.loads(told)]
    return _told(number, seen, crowded, spent, seconds, process.memory_info().rss)


async def _besieged(
    pid: int, folder: Path, address: str, number: int, rate: float, seconds: float, forgeries: int
) -> str:
    process = psutil.Process(pid)
    actors = asyncio.create_task(crowd(address, range(number), number / rate, 1e9, 0.0))
    await asyncio.sleep(10.0 + 2.0 * number / rate)
    alone = await _groups_a_second(folder, asyncio.sleep(seconds))
    rss, received = process.memory_info().rss, _received(folder)
    argv = [sys.executable, "-m", "bench.fleet.forgers", address, str(forgeries)]
    forger = await asyncio.create_subprocess_exec(*argv)
    try:
        beside = await _groups_a_second(folder, _until_received(folder, received + forgeries, actors))
        grown = process.memory_info().rss / rss - 1
    finally:
        forger.kill()
        await forger.wait()
    handled = _received(folder) - received
    status = json.loads((folder / "status.json").read_text())
    actors.cancel()
    forged_tokens = status["total_response_tokens"] - status["total_groups_accepted"] * GROUP_TOKENS
    return (
        f"{number} actors: {alone:.1f} groups/s alone, {beside:.1f} beside {forgeries} forgeries "
        f"({beside / alone:.2f}); {handled} messages handed over meanwhile, "
        f"{status['total_messages_refused']:.0f} refused as messages, {status.get('total_groups_invalid', 0):.0f} as "
        f"groups; memory {rss / 2**20:.0f} MiB, {100 * grown:+.1f} %; {status['groups_counted']} groups counted, "
        f"{forged_tokens:.0f} tokens of others among them, {len(status['quarantined'])} prompts quarantined"
    )


async def _until_received(folder: Path, number: int, actors: asyncio.Task[Sequence[Seen]]) -> None:
    """Until the coordinator was handed so many messages, or no more for a while; the actors must not end."""
    last, quiet = -1, 0
    while (now := _received(folder)) < number and quiet < QUIET_SECONDS:
        assert not actors.done(), actors.exception()
        quiet, last = (0, now) if now > last + number * 1e-5 else (quiet + 1, last)
        await asyncio.sleep(1.0)


async def _groups_a_second(folder: Path, until: Awaitable[object]) -> float:
    """That the ledger counts, from now until something is over."""
    before, began = _groups_counted(folder), time.monotonic()
    await until
    return (_groups_counted(folder) - before) / (time.monotonic() - began)


def _received(folder: Path) -> int:
    return int(json.loads((folder / "received.json").read_text())["received"])


def _groups_counted(folder: Path) -> int:
    return int(json.loads((folder / "status.json").read_text())["groups_counted"])


async def _after(seconds: float, process: psutil.Process) -> float:
    await asyncio.sleep(seconds)
    return _core_seconds(process)


def _core_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _told(
    number: int, seen: Sequence[Seen], crowded: Sequence[Seen], core_seconds: float, seconds: float, rss: int
) -> str:
    groups = sum(each.groups for each in (*seen, *crowded))
    return (
        f"{number} actors, {groups / seconds:.1f} groups/s: {_times(seen)}"
        + (f" ({_times(crowded)} of {len(crowded)} that share a process)" if crowded else "")
        + f"; coordinator {1000 * core_seconds / max(1, groups):.2f} ms of processor time a group, "
        f"{rss / 2**20:.0f} MiB"
    )


def _times(seen: Sequence[Seen]) -> str:
    acks, leases = [each.acks for each in seen], [each.leases for each in seen]
    return (
        f"ack p50 {_percentile(acks, 50):.1f} ms, p99 {_percentile(acks, 99):.1f}; "
        f"lease p50 {_percentile(leases, 50):.1f} ms, p99 {_percentile(leases, 99):.1f}"
    )


def _percentile(lists: Sequence[Sequence[float]], percent: float) -> float:
    values = [value for each in lists for value in each]
    return 1000 * float(np.percentile(values, percent)) if values else float("nan")


if __name__ == "__main__":
    main()
