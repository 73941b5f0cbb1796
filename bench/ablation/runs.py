"""Runs the arms with the real services, and measures them on held-out problems."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.ablation.arms import DEMO, Arm, Settings, settings_of, words
from dcpo_async.config.loading import load_config
from dcpo_async.demo.services import free_address, measure, train, warm_up
from dcpo_async.durable import write_json
from dcpo_async.errors import ConfigError, DcpoError
from dcpo_async.run_folder import RunFolder
from dcpo_async.weights.places import version_folder, versions
from dcpo_async.weights.store import prune, read_manifest

WARM_UP_STEPS = 250


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run, and where.

    Attributes:
        out: folder of everything.
        steps: optimizer steps of each run.
        every: steps between two measurements.
        samples: responses to each held-out problem.
        engine: "vllm", or "scripted" for a look at the plumbing.
        at_once: runs that share the machine.
        overrides: settings of all runs, by their dotted names.
    """

    out: Path
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    steps: int
    every: int
    samples: int
    engine: str
    at_once: int
    overrides: Settings

    def folder(self, arm: Arm, seed: int) -> Path:
        """Run folder of an arm under a seed."""
        return self.out / f"{arm.name.replace(' ', '-').lower()}-seed{seed}"

    def start(self, seed: int) -> Path:
        """Folder of the warm start that all arms share under a seed."""
        return self.out / f"start-seed{seed}"

    def evaluation(self, seed: int) -> Path:
        """Folder of the measurements under a seed."""
        return self.out / f"evaluation-seed{seed}"


async def run_all(plan: Plan) -> None:
    """Warm up, train and measure seed by seed; what is finished is left as it is."""
    places = asyncio.Semaphore(plan.at_once)
    for seed in plan.seeds:
        await _warm_up(plan, seed)
        async with asyncio.TaskGroup() as tasks:
            for arm in plan.arms:
                tasks.create_task(_train(plan, arm, seed, places))
        await _measure(plan, seed)


async def _warm_up(plan: Plan, seed: int) -> None:
    start = plan.start(seed)
    # Written last.
    if (start / "model" / "tokenizer_config.json").exists():
        return
    start.mkdir(parents=True, exist_ok=True)
    await warm_up(start, seed, WARM_UP_STEPS, plan.out / "logs" / f"start-seed{seed}.log")


async def _train(plan: Plan, arm: Arm, seed: int, places: asyncio.Semaphore) -> None:
    """Train an arm to its end, and keep the versions that are measured."""
    folder, start = plan.folder(arm, seed), plan.start(seed)
    if not RunFolder(folder).export.is_dir():
        async with places:
            print(f"seed {seed}: {arm.name} …", flush=True)
            settings = settings_of(arm, plan.steps, plan.overrides) | {
                "folder": folder,
                "seed": seed,
                "model.path": start / "model",
                "data.source": start / "train.jsonl",
                "network.listen": free_address(),
            }
            actor_words = ("--engine", plan.engine, "--kv-cache-gib", "0.5")
            await train(DEMO, words(settings), plan.out / "logs", actor_words)
    prune(RunFolder(folder).weights, keep=1, protect=set(_measured_versions(plan, folder).values()))


def _measured_versions(plan: Plan, folder: Path) -> dict[int, int]:
    """The newest version of every step that is measured; a step that was trained again has several."""
    store = RunFolder(folder).weights
    newest = {read_manifest(version_folder(store, version)).step: version for version in versions(store)}
    return {step: version for step, version in newest.items() if step % plan.every == 0}


async def _measure(plan: Plan, seed: int) -> None:
    """Held-out accuracy of the kept versions of every arm, one engine for all."""
    folders = [plan.folder(arm, seed) for arm in plan.arms]
    models = {
        f"{folder.name}-step{step:04d}": version_folder(RunFolder(folder).weights, version)
        for folder in folders
        for step, version in _measured_versions(plan, folder).items()
    }
    print(f"seed {seed}: measuring {len(models)} versions on held-out problems …", flush=True)
    await measure(
        models,
        plan.start(seed) / "held_out.jsonl",
        plan.evaluation(seed),
        load_config(DEMO, ["--seed", str(seed)]),
        engine=plan.engine,
        samples=plan.samples,
        log=plan.out / "logs" / f"evaluation-seed{seed}.log",
    )


def settled(plan: Plan) -> None:
    """Note what shapes the runs, or hold a later call to it; raises ConfigError where the two differ."""
    path, wanted = plan.out / "plan.json", {"steps": plan.steps, "every": plan.every, "samples": plan.samples}
    wanted |= {"engine": plan.engine, "overrides": dict(plan.overrides)}
    if path.exists() and (found := json.loads(path.read_text())) != wanted:
        raise ConfigError(f"{plan.out} holds runs of {found}, now it is {wanted}: choose another --out")
    plan.out.mkdir(parents=True, exist_ok=True)
    write_json(path, wanted)


def leaves(errors: BaseExceptionGroup[DcpoError]) -> Iterator[DcpoError]:
    """Every error of a group and of the groups in it."""
    for error in errors.exceptions:
        yield from leaves(error) if isinstance(error, BaseExceptionGroup) else (error,)
