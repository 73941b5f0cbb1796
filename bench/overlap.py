"""What a run gains by generating while it trains, learner and actor on a core each: `python -m bench.overlap CONFIG`.

Three measurements in turns: generation alone, the run at lag 0, and at the lag of its configuration. The share is
max(generation, training) / step of the asynchronous run: 1 where the slower side never waits.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
from transformers import AutoTokenizer

from actor.engine.choice import make_engine
from dcpo_async.config import RunConfig
from dcpo_async.config.loading import load_config
from dcpo_async.demo.services import free_address, train
from dcpo_async.metrics.jsonl import read_metrics
from dcpo_async.prompts import encode_prompts, load, problem_source
from dcpo_async.records import Lease, Sampling

LEARNER_CORE, ACTOR_CORE = "0", "1"


def main() -> None:
    """Run the rounds and print each; other words are settings, as `dcpo-learner` takes them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--skip", type=int, default=10, help="steps at the beginning that do not count")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--generate-alone", action="store_true", help=argparse.SUPPRESS)
    options, words = parser.parse_known_args()
    if options.generate_alone:
        print(asyncio.run(seconds_of_generation(load_config(options.config, words), options.steps)))
        return
    # Threads of one process on one core would only wait for each other.
    os.environ["OMP_NUM_THREADS"] = "1"
    shares = []
    for number in range(options.rounds):
        generation = generation_alone(options, words)
        synchronous = asyncio.run(steps_of(options, [*words, "--lag.max_lag", "0"]))
        asynchronous = asyncio.run(steps_of(options, words))
        training = synchronous["step_seconds"] + synchronous["publish_stall_seconds"]
        shares.append(max(generation, training) / asynchronous["wall"])
        print(
            f"round {number + 1}: generation alone {generation:.3f} s a step, training {training:.3f}; a step takes "
            f"{synchronous['wall']:.3f} at lag 0, {asynchronous['wall']:.3f} at the configuration's; "
            f"{synchronous['wall'] / asynchronous['wall']:.2f} times as fast; share {shares[-1]:.3f}",
            flush=True,
        )
    print(f"max(generation, training) / step: {median(shares):.3f} [{min(shares):.3f}, {max(shares):.3f}]")


def generation_alone(options: argparse.Namespace, words: Sequence[str]) -> float:
    """Seconds for the groups of one step, by an engine on the actor's core with nobody beside it."""
    command = ["taskset", "-c", ACTOR_CORE, sys.executable, "-m", "bench.overlap", str(options.config)]
    command += ["--generate-alone", "--steps", str(options.steps), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


async def seconds_of_generation(config: RunConfig, steps: int) -> float:
    """As many groups in flight as in the run, each replaced as it ends; the mean over a run's steps.

    Groups that began together end together, so that a median over few places would be one of the gaps within a bunch.
    """
    data, sampling = config.data, config.sampling
    tokenizer = AutoTokenizer.from_pretrained(config.model.path)
    problems = load(problem_source(data.source)).problems
    limits = data.max_prompt_tokens
    prompts = encode_prompts(problems, tokenizer, data.system_prompt or None, data.prompt_template, limits).prompts
    places = config.actor.groups_in_flight
    engine = make_engine(
        argparse.Namespace(
            engine="vllm", device="cpu", tensor_parallel=1, kv_cache_gib=0.5, memory_share=0.9, cpu_threads=1
        ),
        dtype="float32",
        max_model_tokens=limits + sampling.max_response_tokens,
        max_responses=places * sampling.group_size,
    )
    await engine.start(Path(config.model.path), 1, None)
    wanted = Sampling(sampling.group_size, sampling.temperature, sampling.max_response_tokens, config.seed)
    free, ended = asyncio.Semaphore(places), []

    async def answer(number: int) -> None:
        prompt = prompts[number % len(prompts)]
        token_ids = np.asarray(prompt.token_ids, dtype=np.int32)
        try:
            await engine.generate(Lease(number, 1, prompt.id, 1, 1, token_ids, prompt.answer), wanted)
        finally:
            free.release()
        ended.append(time.monotonic())

    groups = config.training.groups_per_step
    async with asyncio.TaskGroup() as tasks:
        for number in range(places + steps * groups):
            await free.acquire()
            tasks.create_task(answer(number))
    await engine.close()
    marks = sorted(ended)
    return (marks[-1] - marks[places - 1]) / steps


async def steps_of(options: argparse.Namespace, words: Sequence[str]) -> dict[str, float]:
    """Train with the real services; medians of a step's parts, and its wall time, past the first steps."""
    with tempfile.TemporaryDirectory() as name:
        overrides = [*words, "--folder", f"{name}/run", "--training.max_steps", str(options.steps)]
        overrides += ["--network.listen", free_address()]
        config = await train(
            options.config,
            overrides,
            Path(name),
            ("--kv-cache-gib", "0.5"),
            learner_prefix=("taskset", "-c", LEARNER_CORE),
            actor_prefix=("taskset", "-c", ACTOR_CORE),
        )
        lines = read_metrics(config.folder)[options.skip :]
    found = {key: median(line[key] for line in lines) for key in ("step_seconds", "publish_stall_seconds")}
    found["wall"] = (lines[-1]["seconds"] - lines[0]["seconds"]) / (len(lines) - 1)
    return found


if __name__ == "__main__":
    main()
