"""Command line of the comparison on chains, which `python -m bench.ablation --task chains` hands over to."""

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path

from bench.ablation.arms import words
from bench.ablation.runs import leaves
from bench.chains.arms import CONFIG, SUITES, check
from bench.chains.plan import Plan
from bench.chains.suite import run_all
from bench.chains.table import report
from dcpo_async.config.loading import load_config
from dcpo_async.demo.chains import ChainSizes
from dcpo_async.demo.tasks import CHAIN_WARM_UP_STEPS
from dcpo_async.errors import ConfigError, DcpoError


def parser_of() -> argparse.ArgumentParser:
    """What the command line takes."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.ablation --task chains",
        description="DCPO, its rivals and its parts on chains of facts, each run in one process on one core, from the "
        "same warm starts. The same command goes on where an earlier one was ended.",
        epilog="What shapes all runs can be overridden by its dotted name, such as --training.gradient_clip 0.5.",
    )
    parser.add_argument("--suite", choices=tuple(SUITES), default="algorithms")
    parser.add_argument("--only", nargs="+", metavar="ARM", help="arms by name; all by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(8)))
    parser.add_argument("--sizes", nargs="+", default=[], metavar="NAME=VALUE", help="of the task, such as states=16")
    parser.add_argument("--warm-up-steps", type=int, default=CHAIN_WARM_UP_STEPS)
    parser.add_argument("--responses", type=int, default=89_600, help="that each run generates (default 89,600)")
    parser.add_argument("--every", type=int, default=100, help="optimizer steps between two measurements")
    parser.add_argument("--samples", type=int, default=8, help="responses to each held-out problem (default 8)")
    parser.add_argument("--last-samples", type=int, default=32, help="the same at the beginning and the end")
    parser.add_argument(
        "--rates",
        type=float,
        nargs="+",
        default=[1e-4, 2e-4, 4e-4],
        help="learning rates, of which each arm takes its best; a single one is taken as it is",
    )
    parser.add_argument(
        "--rate-seeds",
        type=int,
        nargs="+",
        default=[100, 101],
        help="of the runs that choose it; they do not count",
    )
    parser.add_argument("--at-once", type=int, default=2, help="runs that share the machine (default 2)")
    parser.add_argument("--report-only", action="store_true", help="of what is finished; nothing is run")
    parser.add_argument("--out", type=Path, default=Path("runs/chains"))
    return parser


def plan_of(options: argparse.Namespace, overrides: dict[str, str]) -> Plan:
    """The comparison that the words ask for; raises ConfigError for one that cannot be carried out."""
    suite = {arm.name: arm for arm in SUITES[options.suite]}
    if unknown := set(options.only or ()) - suite.keys():
        raise ConfigError(f"no such arm: {', '.join(sorted(unknown))}; there are {', '.join(suite)}")
    names = ("warm_up_steps", "responses", "every", "samples", "at_once")
    for name in names:
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(options, name)}: it must be at least 1")
    if options.last_samples < 32:
        raise ConfigError(f"--last-samples {options.last_samples}: pass@32 needs at least 32")
    if min(options.rates) <= 0:
        raise ConfigError(f"--rates {' '.join(map(str, options.rates))}: a learning rate is above 0")
    if set(options.seeds) & set(options.rate_seeds) or len(set(options.seeds)) < len(options.seeds):
        raise ConfigError("--seeds: each counts once, and none may be among --rate-seeds, which chose the rates")
    plan = Plan(
        out=options.out,
        suite=options.suite,
        # In the order in which they were asked for: differences are to the first.
        arms=tuple(suite[name] for name in options.only or suite),
        seeds=tuple(options.seeds),
        sizes=ChainSizes.read(options.sizes),
        warm_up_steps=options.warm_up_steps,
        responses=options.responses,
        every=options.every,
        samples=options.samples,
        last_samples=options.last_samples,
        rates=tuple(options.rates),
        rate_seeds=tuple(options.rate_seeds),
        at_once=options.at_once,
        overrides=overrides,
    )
    for arm in plan.arms:
        check(arm, plan.sizes, overrides)
    updates = load_config(CONFIG, words(overrides)).algorithm.updates_per_batch
    if plan.every % updates:
        raise ConfigError(f"--every {plan.every}: weights are measured between batches, give a multiple of {updates}")
    return plan


def main(arguments: Sequence[str]) -> None:
    """Run what is missing, and print the tables."""
    parser = parser_of()
    options, rest = parser.parse_known_args(arguments)
    overrides = {name.removeprefix("--"): value for name, value in zip(rest[::2], rest[1::2], strict=False)}
    if words(overrides) != rest:
        parser.error(f"unknown words: {' '.join(rest)}; give settings as --NAME VALUE")
    failed: list[DcpoError] = []
    try:
        plan = plan_of(options, overrides)
        plan.settle()
        if not options.report_only:
            asyncio.run(run_all(plan))
        print(report(plan))
    except* DcpoError as errors:
        failed = list(leaves(errors))
    if failed:
        parser.exit(failed[0].exit_code, f"{parser.prog}: {failed[0]}\n")
