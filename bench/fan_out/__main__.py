"""How long until all machines have a version, by relays and without: `python -m bench.fan_out --machines 16`.

Each machine has a cache, a relay and a puller of its own, over ZeroMQ on loopback; a token bucket stands for the link
between each parent and child, so that links are the bound and not this machine's processors, of which the busy share is
printed. Seconds of the clock.
"""

import argparse
import asyncio
import signal
import tempfile
from pathlib import Path
from statistics import median

from bench.fan_out.fleet import Fleet, Outcome, write_version


async def measure(options: argparse.Namespace, scratch: Path) -> dict[str, list[Outcome]]:
    """All runs in turns, as often as asked for."""
    store = scratch / "store"
    write_version(store, options.megabytes * 1_000_000)
    found = dict[str, list[Outcome]]()
    link, machines = options.link_mbps, options.machines
    trouble = {0: signal.SIGKILL, 1: signal.SIGSTOP}

    async def run(name: str, num_machines: int, *, by_tree: bool, origin_mbps: float | None = None) -> None:
        with tempfile.TemporaryDirectory(prefix="caches-", dir=scratch) as caches:
            fleet = Fleet(store, Path(caches), link, trouble if "killed" in name else {})
            outcome = await fleet.fetch(num_machines, by_tree=by_tree, origin_mbps=origin_mbps)
        found.setdefault(name, []).append(outcome)
        print(
            f"{name:44} {max(outcome.seconds):7.2f} s, median machine {median(outcome.seconds):7.2f} s, origin sent "
            f"{outcome.origin_bytes / (options.megabytes * 1e6):5.2f} versions, processors {outcome.busy_share:.0%} "
            f"busy, {outcome.own_share:.0%} by this",
            flush=True,
        )

    for _ in range(options.repetitions):
        await run("one machine alone", 1, by_tree=False)
        await run("all by the tree", machines, by_tree=True)
        await run("all from the origin, each link bounded", machines, by_tree=False)
        await run("by the tree, relays killed and stopped", machines, by_tree=True)
    # Once, as it takes eight times as long as any other.
    await run("all from the origin, uplink of two links", machines, by_tree=False, origin_mbps=2 * link)
    return found


def main() -> None:
    """Measure and print a line for each run, then the ratios."""
    parser = argparse.ArgumentParser(prog="bench.fan_out", description=__doc__)
    parser.add_argument("--machines", type=int, default=16)
    parser.add_argument("--megabytes", type=int, default=128, help="of a version")
    parser.add_argument("--link-mbps", type=float, default=8.0, help="megabytes a second of a link")
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dcpo-bench-", dir="/dev/shm") as scratch:
        found = asyncio.run(measure(options, Path(scratch)))
    alone = median(max(outcome.seconds) for outcome in found["one machine alone"])
    for name, outcomes in found.items():
        last = sorted(max(outcome.seconds) for outcome in outcomes)
        print(
            f"{name:44} {median(last):7.2f} s [{last[0]:.2f}, {last[-1]:.2f}], {median(last) / alone:.2f} x one alone"
        )


if __name__ == "__main__":
    main()
