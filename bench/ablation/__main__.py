"""Command line of the ablation."""

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path

from bench.ablation.arms import DEMO, SUITES, settings_of, words
from bench.ablation.runs import Plan, leaves, run_all, settled
from bench.ablation.table import table
from bench.chains import command as chains
from dcpo_async.config.loading import load_config
from dcpo_async.errors import ConfigError, DcpoError


def check(plan: Plan) -> None:
    """Refuse what could not be run to its end, or measured; raises ConfigError."""
    for name, value in (("every", plan.every), ("samples", plan.samples), ("at-once", plan.at_once)):
        if value < 1:
            raise ConfigError(f"--{name} {value}: it must be at least 1")
    if len(set(plan.seeds)) < len(plan.seeds):
        raise ConfigError(f"--seeds {' '.join(map(str, plan.seeds))}: each run counts once; give distinct seeds")
    for arm in plan.arms:
        config = load_config(DEMO, words(settings_of(arm, plan.steps, plan.overrides)))
        if plan.every % config.lag.publish_interval or plan.steps % plan.every:
            raise ConfigError(
                f"--every {plan.every}: it must divide --steps {plan.steps}, and be a multiple of the "
                f"{config.lag.publish_interval} steps between the versions of {arm.name}"
            )


def main() -> None:
    """Hand over to the task that is asked for; the demo's is this one."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--task", choices=("largest", "chains"), default="largest")
    options, rest = parser.parse_known_args()
    if options.task == "chains":
        chains.main(rest)
    else:
        largest(rest)


def largest(arguments: Sequence[str]) -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.ablation",
        description="DCPO, its rivals and its parts on the demo's task, from the same warm starts. The same command "
        "goes on where an earlier one was ended. --task chains has words of its own.",
        epilog="Any setting of all runs can be overridden by its dotted name, such as --training.learning_rate 1e-4.",
    )
    parser.add_argument("--suite", choices=tuple(SUITES), default="algorithms")
    parser.add_argument("--only", nargs="+", metavar="ARM", help="arms by name; all by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=120, help="optimizer steps; 120 visit every prompt 6 times")
    parser.add_argument("--every", type=int, default=20, help="steps between two measurements (default 20)")
    parser.add_argument("--samples", type=int, default=8, help="responses to each held-out problem (default 8)")
    parser.add_argument("--engine", choices=("vllm", "scripted"), default="vllm")
    parser.add_argument("--at-once", type=int, default=2, help="runs that share the machine (default 2)")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    options, rest = parser.parse_known_args(arguments)
    overrides = {name.removeprefix("--"): value for name, value in zip(rest[::2], rest[1::2], strict=False)}
    if words(overrides) != rest:
        parser.error(f"unknown words: {' '.join(rest)}; give settings as --NAME VALUE")
    suite = {arm.name: arm for arm in SUITES[options.suite]}
    if unknown := set(options.only or ()) - suite.keys():
        parser.error(f"no such arm: {', '.join(sorted(unknown))}; there are {', '.join(suite)}")
    plan = Plan(
        out=options.out,
        arms=tuple(arm for name, arm in suite.items() if options.only is None or name in options.only),
        seeds=tuple(options.seeds),
        steps=options.steps,
        every=options.every,
        samples=options.samples,
        engine=options.engine,
        at_once=options.at_once,
        overrides=overrides,
    )
    try:
        # Before anything slow begins.
        check(plan)
        settled(plan)
        asyncio.run(run_all(plan))
    except* DcpoError as errors:
        first = next(iter(leaves(errors)))
        parser.exit(first.exit_code, f"{parser.prog}: {first}\n")
    print(table(plan))


if __name__ == "__main__":
    main()
