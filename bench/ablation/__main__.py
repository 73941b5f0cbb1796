"""Command line of the ablation."""

import argparse
import asyncio
from pathlib import Path

from bench.ablation.arms import SUITES
from bench.ablation.runs import Plan, run_all, settled
from bench.ablation.table import table


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.ablation",
        description="DCPO, its rivals and its parts on the demo's task, from the same warm starts. The same command "
        "goes on where an earlier one was ended.",
        epilog="Any setting of all runs can be overridden by its dotted name, such as --training.learning_rate 1e-4.",
    )
    parser.add_argument("--suite", choices=tuple(SUITES), default="algorithms")
    parser.add_argument("--only", nargs="+", metavar="ARM", help="arms by name; all by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=120, help="optimizer steps; 120 visit every prompt 6 times")
    parser.add_argument("--every", type=int, default=20, help="steps between two measurements (default 20)")
    parser.add_argument("--samples", type=int, default=4, help="responses to each held-out problem (default 4)")
    parser.add_argument("--engine", choices=("vllm", "scripted"), default="vllm")
    parser.add_argument("--at-once", type=int, default=2, help="runs that share the machine (default 2)")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    options, overrides = parser.parse_known_args()
    arms = tuple(arm for arm in SUITES[options.suite] if options.only is None or arm.name in options.only)
    plan = Plan(
        options.out,
        arms,
        tuple(options.seeds),
        options.steps,
        options.every,
        options.samples,
        options.engine,
        options.at_once,
        tuple(overrides),
    )
    settled(plan)
    asyncio.run(run_all(plan))
    print(table(plan))


if __name__ == "__main__":
    main()
