"""The work of `dcpo eval`: models, or a running learner's weights, are measured on problem sets."""

import argparse
import asyncio
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from actor.evaluation.evaluator import Evaluator, Modes
from actor.evaluation.run_follower import RunFollower
from actor.learner_link import LearnerLink
from dcpo_async.config import GradingSettings
from dcpo_async.devices import checked_gpus, cuda_environment
from dcpo_async.errors import ConfigError, WeightsError
from dcpo_async.evaluation.best import BestVersion, version_name
from dcpo_async.evaluation.results import ResultsFolder, of_grading
from dcpo_async.grading.rewards import resolved_reward
from dcpo_async.metrics.jsonl import MetricsWriter
from dcpo_async.metrics.sink import Sink
from dcpo_async.metrics.tensorboard import TensorBoardWriter
from dcpo_async.model_folder import model_folder
from dcpo_async.prompts import (
    Likeness,
    LoadedProblems,
    ProblemSource,
    count_contaminated,
    load,
    overlaps,
    problem_source,
)
from dcpo_async.records import Sampling
from dcpo_async.run_folder import RunFolder
from dcpo_async.transport.key_files import load_peer_keys
from dcpo_async.transport.security import check_address
from dcpo_async.transport.zmq_channel import connecting
from dcpo_async.weights.manifest import MANIFEST_NAME, Manifest, base_of
from dcpo_async.weights.store import model_digest, verify

log = logging.getLogger(__name__)


async def measure(options: argparse.Namespace, console: Console) -> None:
    """Measure what the options name, and print the table; raises DcpoError."""
    _check(options)
    _take_gpus(options)
    grading = asked_grading(options)
    models = {} if options.learner else _models(options.models)
    sets = _sets(options)
    if options.trained_on:
        _warn_of_trained(problem_source(options.trained_on), sets, options.limit)
    with ResultsFolder(options.out, _settings(options, sets), overwrite=options.overwrite) as results:
        evaluator = Evaluator(options, _modes(options), sets, results, console)
        try:
            if options.learner:
                await _measure_run(options, evaluator, results)
            else:
                assert grading is not None
                results.add(of_grading(grading))
                evaluator.grade_by(grading)
                await _measure_models(options, models, evaluator, results)
        finally:
            await evaluator.close()
        print(evaluator.report(), end="")


async def _measure_models(
    options: argparse.Namespace, models: dict[str, Path], evaluator: Evaluator, results: ResultsFolder
) -> None:
    if options.dtype == "auto":
        options.dtype = "bfloat16" if options.device == "gpu" else "float32"
    manifests = {name: await asyncio.to_thread(_manifest, folder) for name, folder in models.items()}
    digests = {f"model {name}": await asyncio.to_thread(_digest, folder) for name, folder in models.items()}
    # Weights that did not change, such as those that all runs begin with, have one digest.
    versions = {f"version {name}": f"{m.run_id} {m.weights_version}" for name, m in manifests.items() if m is not None}
    results.add({"dtype": options.dtype, **digests, **versions})
    for name, folder in models.items():
        await evaluator.measure(name, folder, manifests[name])


def _manifest(folder: Path) -> Manifest | None:
    """Of a version of a weight store, with every byte checked against it; None for any other model.

    Of an adapter the model that it is for is checked too.
    """
    try:
        if (model := base_of(folder)) != folder:
            verify(model)
        return verify(folder) if (folder / MANIFEST_NAME).exists() else None
    except WeightsError as error:
        raise ConfigError(f"model {folder}: {error}; without {MANIFEST_NAME} it is a model of no run") from None


def _digest(folder: Path) -> str:
    """Of the model in a folder; an adapter has another one on another model."""
    model = base_of(folder)
    return model_digest(folder) if model == folder else f"{model_digest(folder)} for {model_digest(model)}"


async def _measure_run(options: argparse.Namespace, evaluator: Evaluator, results: ResultsFolder) -> None:
    """Measure the run's newest weights again and again, each version as a whole, until the run ends."""
    keys = load_peer_keys(options.keys) if options.keys else None
    link = LearnerLink(
        connecting(keys, insecure=options.insecure),
        options.learner,
        engine=options.engine,
        role="evaluator",
        join_seconds=options.join_seconds,
    )
    best = BestVersion(options.out) if options.keep_best else None
    follower = RunFollower(link)
    sinks: list[Sink] = [MetricsWriter(options.out), TensorBoardWriter(RunFolder(options.out).tensorboard)]
    try:
        async with follower:
            welcome = await follower.joined()
            if options.dtype == "auto":
                options.dtype = welcome.dtype
            results.add({"dtype": options.dtype, "run": follower.session.run_id, **of_grading(welcome.grading)})
            evaluator.grade_by(welcome.grading)
            step = 0
            while (found := await follower.next_weights(from_step=step)) is not None:
                folder, manifest = found
                figures = await evaluator.measure(version_name(manifest), folder, manifest)
                if best is not None:
                    await asyncio.to_thread(best.consider, folder, manifest, results.summary())
                for sink in sinks:
                    sink.write(manifest.step, figures)
                if options.once:
                    break
                step = (manifest.step // options.every_steps + 1) * options.every_steps
    finally:
        for sink in sinks:
            sink.close()


def _check(options: argparse.Namespace) -> None:
    """Refuse what cannot be measured, before anything slow begins."""
    if bool(options.models) == bool(options.learner):
        raise ConfigError("name models to measure, or --learner ADDRESS for those of a running learner, one of the two")
    if options.learner:
        check_address(options.learner, has_keys=options.keys is not None, insecure=options.insecure)
    if options.keep_best and not options.learner:
        raise ConfigError("--keep-best needs --learner: other models stay where they are")
    for name in ("limit", "max_prompt_tokens", "max_response_tokens", "in_flight", "every_steps", "tensor_parallel"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: it must be at least 1")
    options.template_arguments = _table(options.template_arguments)
    if "" in options.stop:
        raise ConfigError("--stop '': every text contains it; give one of a character or more")
    if options.samples < 0 or (options.samples == 0 and not options.greedy):
        raise ConfigError(f"--samples {options.samples}: it must be at least 1, or 0 for greedy responses alone")
    if options.temperature <= 0:
        raise ConfigError(
            f"--temperature {options.temperature:g}: it must be above 0; greedy responses come by themselves"
        )


def asked_grading(options: argparse.Namespace) -> GradingSettings | None:
    """How the models are graded; None with --learner, whose run says it.

    Raises ConfigError for a reward that cannot be called, and where a run is to be graded otherwise than it grades.
    """
    given = {
        "extraction": options.extraction,
        "reward": options.reward,
        "reward_range": options.reward_range and tuple(options.reward_range),
    }
    given = {name: value for name, value in given.items() if value is not None}
    if options.learner:
        if given:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ConfigError(f"{names} with --learner: an evaluation grades as the run does; leave it out")
        return None
    if "reward_range" in given and "reward" not in given:
        raise ConfigError("--reward-range would not be read, it needs --reward")
    if options.metadata_fields and "reward" not in given:
        raise ConfigError("--metadata-fields would not be read, it needs --reward")
    try:
        grading = GradingSettings.model_validate(given)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        name = str(found["loc"][0]).replace("_", "-")
        raise ConfigError(f"--{name} {found['input']}: {found['msg']}") from None
    low, high = grading.reward_range
    if not low <= 0 <= high or low == high:
        raise ConfigError(f"--reward-range {low:g} {high:g}: from the lowest to the highest reward, 0 among them")
    return resolved_reward(grading)


def _table(text: str) -> dict[str, Any]:
    try:
        table = json.loads(text)
    except ValueError:
        table = None
    if not isinstance(table, dict):
        raise ConfigError(f"--template-arguments {text}: no JSON object, such as '{{\"enable_thinking\": false}}'")
    return table


def _take_gpus(options: argparse.Namespace) -> None:
    """Show the engine the GPUs that it may use, all of which it spans."""
    if options.gpus is not None:
        gpus = checked_gpus(options.gpus)
        if options.tensor_parallel not in (1, len(gpus)):
            raise ConfigError(
                f"--tensor-parallel {options.tensor_parallel} with --gpus {options.gpus}: one engine spans all"
            )
        options.device, options.tensor_parallel = "gpu", len(gpus)
        os.environ.update(cuda_environment(gpus))
    elif options.tensor_parallel > 1:
        raise ConfigError(f"--tensor-parallel {options.tensor_parallel} needs --gpus")
    if options.in_flight is None:
        options.in_flight = 256 if options.device == "gpu" else 32


def _models(words: Sequence[str]) -> dict[str, Path]:
    """Folder by name; a model without a name is called by the last part of its path."""
    models: dict[str, Path] = {}
    for word in words:
        name, equals, location = word.rpartition("=")
        folder = _folder_of(location)
        name = name if equals else Path(location).resolve().name
        if not name or "/" in name or name.startswith("."):
            raise ConfigError(f"model {word}: {name!r} cannot name a folder; write NAME=FOLDER")
        if name in models:
            raise ConfigError(f"two models are called {name}; write NAME=FOLDER to tell them apart")
        models[name] = folder
    return models


def _folder_of(location: str) -> Path:
    """The folder of a model, or of an adapter in a weight store beside the model that it is for."""
    folder = Path(location).expanduser()
    try:
        model = base_of(folder)
    except WeightsError as error:
        raise ConfigError(f"model {location}: {error}; without {MANIFEST_NAME} it is a model of no run") from None
    if model == folder:
        return model_folder(location, "model")
    if not model.is_dir():
        raise ConfigError(
            f"model {location} is an adapter to {model.name} of its run, which does not lie beside it: name the "
            "version where the run has it, or a whole model that `dcpo export` wrote"
        )
    model_folder(str(model), "model")
    return folder


def _sets(options: argparse.Namespace) -> dict[str, LoadedProblems]:
    """Problems by the name of their set."""
    sets: dict[str, LoadedProblems] = {}
    for word in options.data:
        source = problem_source(
            word,
            problem_field=options.problem_field,
            answer_field=options.answer_field,
            answer_pattern=options.answer_pattern,
            split=options.split,
            subset=options.subset,
            metadata_fields=tuple(options.metadata_fields),
        )
        name = Path(source.name).name
        if name in sets:
            raise ConfigError(f"two problem sets are called {name}; give each its own --out, or rename a file")
        sets[name] = load(source)
    return sets


def _warn_of_trained(source: ProblemSource, sets: Mapping[str, LoadedProblems], limit: int | None) -> None:
    """Count the problems that the training set has too: what is measured on those is no accuracy on new ones."""
    trained = [problem.problem for problem in load(source).problems]
    for name, problems in sets.items():
        texts = [problem.problem for problem in problems.problems[:limit]]
        counts = count_contaminated(overlaps(trained, texts))
        if counts[Likeness.NEAR]:
            log.warning(
                "%s: %d of %d problems stand in the training set %s too (%d word for word), so that its accuracy is "
                "not that on new ones; `dcpo data check` shows them",
                name,
                counts[Likeness.NEAR],
                len(texts),
                source.name,
                counts[Likeness.EXACT],
            )


def _modes(options: argparse.Namespace) -> Modes:
    ends = tuple(options.stop), tuple(options.stop_token_id)
    modes: Modes = {}
    if options.greedy:
        modes["greedy"] = Sampling(1, 0.0, options.max_response_tokens, options.seed, *ends)
    if options.samples:
        sampled = options.samples, options.temperature, options.max_response_tokens, options.seed
        modes["sampled"] = Sampling(*sampled, *ends)
    return modes


def _settings(options: argparse.Namespace, sets: dict[str, LoadedProblems]) -> dict[str, Any]:
    """What shapes every result; how many problems are measured does not."""
    sampling = ("engine", "greedy", "samples", "temperature", "max_prompt_tokens", "max_response_tokens", "seed")
    texts = ("system_prompt", "prompt_template")
    settings = {name: getattr(options, name) for name in (*sampling, *texts)}
    # Results of earlier releases, which had none of these, can be gone on with.
    rare = ("template_arguments", "stop", "stop_token_id")
    settings |= {name: getattr(options, name) for name in rare if getattr(options, name)}
    return settings | {"top_p": 1.0} | {f"set {name}": problems.digest for name, problems in sets.items()}
