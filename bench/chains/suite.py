"""Carries a comparison out, process by process; what is finished is left as it is, what was ended begins again."""

import asyncio
from collections.abc import Sequence
from statistics import fmean

from bench.ablation.arms import words
from bench.chains.arms import settings_of
from bench.chains.plan import RATES_NAME, START_NAME, Plan, Run, is_finished
from dcpo_async.comparison.runs import read_run
from dcpo_async.demo.services import run_to_end
from dcpo_async.durable import write_json
from dcpo_async.processes import module_argv

ONE_THREAD = {"OMP_NUM_THREADS": "1"}


async def run_all(plan: Plan) -> None:
    """Choose the learning rates, then run every arm seed by seed, so that what is finished is paired."""
    # Whoever asks first is first: all warm starts, then the runs in their order.
    places = asyncio.Semaphore(plan.at_once)
    async with asyncio.TaskGroup() as tasks:
        for seed in plan.rate_seeds if len(plan.rates) > 1 else ():
            tasks.create_task(_run(plan, seed, plan.trials(seed), places))
    _choose_rates(plan)
    async with asyncio.TaskGroup() as tasks:
        for seed in plan.seeds:
            tasks.create_task(_run(plan, seed, plan.runs(seed), places))


def _choose_rates(plan: Plan) -> None:
    """Note, for each tuned arm, the rate at which its last held-out accuracy is highest, in the mean over the seeds."""
    if len(plan.rates) == 1:
        return
    found: dict[str, dict[float, list[float]]] = {}
    for run in (run for seed in plan.rate_seeds for run in plan.trials(seed)):
        last = read_run(run.arm.name, run.folder).held_out[-1].accuracy.mean
        found.setdefault(run.arm.name, {}).setdefault(run.rate, []).append(last)
    rates = {name: max(by_rate, key=lambda rate: fmean(by_rate[rate])) for name, by_rate in found.items()}
    # Those of another suite's arms stay.
    write_json(plan.out / RATES_NAME, plan.chosen_rates() | rates)


async def _run(plan: Plan, seed: int, runs: Sequence[Run], places: asyncio.Semaphore) -> None:
    """All runs of a seed, once their warm start stands."""
    missing = [run for run in runs if not is_finished(run.folder)]
    if not missing:
        return
    if not (plan.start(seed) / START_NAME).exists():
        async with places:
            print(f"seed {seed}: warm start …", flush=True)
            argv = module_argv("bench.chains.run.start", str(plan.start(seed)), "--seed", str(seed))
            argv += ["--steps", str(plan.warm_up_steps), "--sizes", *plan.sizes.words]
            await run_to_end("warm start", argv, plan.log(plan.start(seed).name), ONE_THREAD)
    async with asyncio.TaskGroup() as tasks:
        for run in missing:
            tasks.create_task(_train(plan, run, places))


async def _train(plan: Plan, run: Run, places: asyncio.Semaphore) -> None:
    async with places:
        print(f"seed {run.seed}: {run.arm.name} at {run.rate * run.arm.rate_factor:g} …", flush=True)
        settings = settings_of(run.arm, plan.sizes, run.rate, plan.overrides)
        settings |= {"folder": run.folder, "seed": run.seed}
        argv = module_argv("bench.chains.run", str(plan.start(run.seed)), "--sides", run.arm.sides)
        argv += ["--responses", str(plan.responses), "--every", str(plan.every)]
        argv += ["--samples", str(plan.samples), "--last-samples", str(plan.last_samples), *words(settings)]
        await run_to_end(run.folder.name, argv, plan.log(run.folder.name), ONE_THREAD)
