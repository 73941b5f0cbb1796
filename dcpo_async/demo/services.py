"""The two services on this machine, as any user would start them: for the demo and for measurements."""

import asyncio
import json
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dcpo_async.config import RunConfig
from dcpo_async.config.loading import load_config
from dcpo_async.errors import EngineError, TrainerError
from dcpo_async.processes import last_lines, module_argv, spawn, stop

POLL_SECONDS = 0.5
ACTOR_GRACE_SECONDS = 30.0
LEARNER_GRACE_SECONDS = 10.0


async def train(
    config_file: Path,
    overrides: Sequence[str],
    logs: Path,
    actor_words: Sequence[str] = (),
    watch: Callable[[RunConfig], None] | None = None,
    *,
    learner_prefix: Sequence[str] = (),
    actor_prefix: Sequence[str] = (),
) -> RunConfig:
    """Start a learner and an actor, wait for the run's end, and end both.

    Args:
        config_file, overrides: of the learner; the address among them is one that is free.
        logs: folder of both logs, which are named after the run's folder.
        actor_words: further words of the actor.
        watch: called every half second, and at the end.
        learner_prefix, actor_prefix: before the command of each, such as taskset's words.

    Returns the run's configuration.

    Raises:
        TrainerError, EngineError: a service ended early; the message holds the end of its log.
    """
    config = load_config(config_file, overrides)
    name = config.folder.name
    learner_log, actor_log = logs / f"{name}-learner.log", logs / f"{name}-actor.log"
    words = ["--workers", "1", "--learner", config.network.listen, "--logs", str(logs / name), *actor_words]
    learner_argv = module_argv("learner.launcher", str(config_file), "--workers", "1", *overrides)
    learner = await spawn([*learner_prefix, *learner_argv], learner_log)
    actor = await spawn([*actor_prefix, *module_argv("actor.launcher", *words)], actor_log)
    try:
        while learner.returncode is None:
            if actor.returncode is not None and actor.returncode != 0:
                raise EngineError(ended_early("actor", actor_log))
            if watch is not None:
                watch(config)
            await asyncio.sleep(POLL_SECONDS)
        if watch is not None:
            watch(config)
        if learner.returncode != 0:
            raise TrainerError(ended_early("learner", learner_log))
    finally:
        await stop(learner, LEARNER_GRACE_SECONDS)
        await stop(actor, ACTOR_GRACE_SECONDS)
    return config


async def warm_up(
    out: Path, seed: int, steps: int, log: Path, task: Sequence[str] = ("dcpo_async.demo.warmup",)
) -> None:
    """Write a task's problems and its warm model into a folder; raises EngineError when that fails.

    Args:
        task: the module that does it, and its further words.
    """
    module, *words = task
    argv = module_argv(module, str(out), "--seed", str(seed), "--steps", str(steps), *words)
    # Threads that spin while they wait for each other are many times slower where others use the cores too.
    await run_to_end("warm-up", argv, log, {"OMP_WAIT_POLICY": "PASSIVE"})


async def run_to_end(what: str, argv: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
    """Run one stage to its end; raises EngineError with the end of its log when it fails."""
    process = await spawn(argv, log, environment)
    try:
        code = await process.wait()
    finally:
        await stop(process, grace_seconds=1)
    if code:
        raise EngineError(ended_early(what, log))


async def measure(
    models: Mapping[str, Path], problems: Path, out: Path, config: RunConfig, *, engine: str, samples: int, log: Path
) -> None:
    """Measure models on held-out problems as a run samples: its temperature, lengths, prompts, extraction and seed.

    Args:
        models: folder by name.
        problems, out: `--data` and `--out` of `dcpo eval`; what is measured there already is left as it is.
        config: of the run.
        samples: responses to each problem.

    Raises EngineError with the end of the log when the evaluation fails.
    """
    sampling, data = config.sampling, config.data
    argv = module_argv("actor.evaluation", *(f"{name}={folder}" for name, folder in models.items()))
    argv += ["--data", str(problems), "--out", str(out), "--engine", engine, "--kv-cache-gib", "0.5"]
    argv += ["--no-greedy", "--samples", str(samples), "--temperature", str(sampling.temperature)]
    argv += ["--max-response-tokens", str(sampling.max_response_tokens), "--seed", str(config.seed)]
    argv += ["--max-prompt-tokens", str(data.max_prompt_tokens), "--system-prompt", data.system_prompt]
    argv += ["--prompt-template", data.prompt_template, "--template-arguments", json.dumps(data.template_arguments)]
    argv += [f"--stop={text}" for text in sampling.stop]
    argv += [f"--stop-token-id={token}" for token in sampling.stop_token_ids]
    argv += ["--extraction", config.grading.extraction, "--in-flight", "256"]
    await run_to_end("evaluation", argv, log)


def ended_early(what: str, log_file: Path) -> str:
    """What to tell of a service that ended early."""
    return f"the {what} ended early; the end of {log_file}:\n{last_lines(log_file, 15)}"


def free_address() -> str:
    """A loopback address whose port is free together with the next one, which the weight server takes."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return f"tcp://127.0.0.1:{port}"
