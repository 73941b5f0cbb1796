"""Kills without end: `python -m bench.chaos --cycles 1000`.

A learner and two actors of two engine processes each, the scripted engine, one CPU rank. Processes die at random
moments by SIGKILL, or kill themselves at named points (`kills.py`); launchers start their children again, this program
the launchers. At the end nothing is killed any more, the run ends, and the ledger is recounted by a reader of its own,
against what the actors were told too; with max_lag 0 the run is repeated undisturbed, and both must have the same bits.

`--soak-minutes 60` kills no learner: actors join, leave and die for so long, and what grows is told (`soak.py`).
`--detection 3` stops each part so often and tells how soon it is named (`detection.py`).
"""

import argparse
import sys
import tempfile
from pathlib import Path

from bench.chaos import kills
from bench.chaos.detection import stopped_parts
from bench.chaos.soak import Soaked, soak
from tests.tiny_model import make_tiny_model


def main() -> None:
    """Run the cycles, print what came of them, and exit 1 where anything was lost, counted twice or left behind."""
    parser = argparse.ArgumentParser(prog="bench.chaos", description=__doc__)
    parser.add_argument("--cycles", type=int, default=1000, help="processes that die")
    parser.add_argument("--max-lag", type=int, default=0)
    parser.add_argument("--engine", choices=("scripted", "vllm"), default="scripted")
    parser.add_argument("--gap-seconds", type=float, default=1.0, help="mean time between two kills")
    parser.add_argument("--soak-minutes", type=float, help="instead of kills of everything")
    parser.add_argument("--detection", type=int, help="rounds; instead of kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="kept afterwards; a temporary folder without it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dcpo-chaos-") as temporary:
        folder = options.out or Path(temporary)
        model = folder / "model"
        model.mkdir(parents=True, exist_ok=True)
        make_tiny_model(model, seed=3)
        if options.detection:
            for noticed in stopped_parts(folder / "detection", model, options.seed, options.detection):
                print(
                    f"{noticed.part:15s} named after {noticed.named_seconds:5.1f} s, two steps more after "
                    f"{noticed.works_seconds:5.1f} s"
                )
            return
        if options.soak_minutes:
            soaked = soak(
                folder / "soak", model, options.soak_minutes, seed=options.seed, gap_seconds=options.gap_seconds
            )
            sys.exit(reported_soak(soaked))
        outcome = kills.run(
            folder,
            model,
            options.cycles,
            max_lag=options.max_lag,
            engine=options.engine,
            seed=options.seed,
            gap_seconds=options.gap_seconds,
        )
    sys.exit(reported(outcome))


def reported_soak(soaked: Soaked) -> int:
    """Print what came of a soak; returns the exit code that says whether the ledger held."""
    print(f"{soaked.steps} steps; " + ", ".join(f"{number} {what}" for what, number in soaked.happened.most_common()))
    for name, (value, slope) in soaked.slopes().items():
        print(f"  {name:32s} {value:10.1f}, {slope:+9.2f} an hour")
    for fault in soaked.ledger.faults[:50]:
        print(f"  FAULT {fault}")
    print(f"recounted: {soaked.ledger.groups} groups, {len(soaked.ledger.faults)} faults")
    return 1 if soaked.ledger.faults else 0


def reported(outcome: kills.Outcome) -> int:
    """Print an outcome; returns the exit code that says whether all held."""
    ledger = outcome.ledger
    print(f"{outcome.deaths.total()} processes died in {outcome.seconds:.0f} s:")
    for place, number in outcome.deaths.most_common():
        print(f"  {number:5d} {place}")
    print(
        f"recounted: {ledger.groups} groups of {ledger.attempts} leases, {ledger.steps} steps, {ledger.versions} "
        f"versions granted, {ledger.acks} acknowledgements by the actors' own records"
    )
    faults = [*ledger.faults, *(outcome.differences or ()), *(f"left behind: {words}" for words in outcome.leftovers)]
    for fault in faults[:50]:
        print(f"  FAULT {fault}")
    if outcome.differences is not None:
        print(f"against an undisturbed run of the same seed: {len(outcome.differences)} differences")
    print("nothing lost, nothing counted twice" if not faults else f"{len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    main()
