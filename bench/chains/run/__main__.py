"""One run in this process, to its end: `python -m bench.chains.run START --folder RUN …`."""

import argparse
import time
from collections import deque
from pathlib import Path

import torch

from bench.chains.arms import CONFIG
from bench.chains.run.clips import one_sided
from bench.chains.run.learning import Learning
from bench.chains.run.measuring import Measuring, encoded
from bench.chains.run.policy import Policy
from bench.chains.run.rollout import Rollout
from bench.chains.run.sampling import reader_of
from dcpo_async.algorithm.loss import Bounds
from dcpo_async.config import RunConfig
from dcpo_async.config.loading import load_config
from dcpo_async.demo.chains import ChainTask
from dcpo_async.durable import write_json
from dcpo_async.errors import DcpoError
from dcpo_async.metrics.jsonl import MetricsWriter
from dcpo_async.run_folder import RunFolder
from learner.coordinator.shards import StepGroup


def train(
    start: Path,
    config: RunConfig,
    bounds: Bounds | None = None,
    *,
    responses: int,
    every: int,
    samples: int,
    last_samples: int,
) -> None:
    """Train until so many responses were generated, measuring as it goes, and leave a folder that is compared.

    Batches are sampled ahead, so that a batch is `lag.max_lag` optimizer steps old when it is trained, as behind
    actors of that lag; the first ones are all of the first weights.

    Args:
        start: folder of the task and of the model to begin with.
        bounds: of the clip; None for those of the settings.
        every: optimizer steps between two measurements.
        samples, last_samples: responses to each held-out problem, and at the beginning and the end.
    """
    task, policy, folder = ChainTask.read(start), Policy(config), RunFolder(config.folder)
    updates, tokenizer = config.algorithm.updates_per_batch, policy.tokenizer
    prompts = encoded(config, task.train, tokenizer)
    rollout = Rollout(config, prompts, reader_of(tokenizer), tokenizer.eos_token_id)
    measuring, learning = Measuring(config, task, tokenizer, config.folder.name), Learning(config, policy, bounds)
    # What a run that was ended has left: it begins again, and ends as it would have.
    folder.metrics.unlink(missing_ok=True)
    metrics = MetricsWriter(config.folder)
    measuring.measure(0, policy.sampler, last_samples)
    ahead: deque[list[StepGroup]] = deque()
    while True:
        while len(ahead) <= config.lag.max_lag // updates and rollout.generated_responses < responses:
            ahead.append(rollout.batch(policy.sampler, learning.step))
        if not ahead:
            break
        spent = rollout.spent() | {"cpu_seconds": time.process_time()}
        first = learning.step + 1
        for step, values in enumerate(learning.train(ahead.popleft()), start=first):
            metrics.write(step, values | spent)
        # Once all is generated only the last weights are measured: those on the way to them have cost as much.
        if learning.step % every == 0 and rollout.generated_responses < responses:
            measuring.measure(learning.step, policy.sampler, samples)
    measuring.measure(learning.step, policy.sampler, last_samples)
    metrics.close()
    measuring.write(folder.evaluation)
    folder.config.write_text(config.model_dump_json())
    # Last: it shows that the run is finished.
    write_json(folder.status, {"run_id": config.folder.name, "is_finished": True})


def main() -> None:
    """Train one run."""
    parser = argparse.ArgumentParser(prog="python -m bench.chains.run", description="One run on chains.")
    parser.add_argument("start", type=Path, help="folder that `python -m bench.chains.run.start` wrote")
    parser.add_argument("--responses", type=int, required=True)
    parser.add_argument("--every", type=int, required=True)
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--last-samples", type=int, required=True)
    parser.add_argument("--sides", choices=("both", "upper", "lower"), default="both")
    options, rest = parser.parse_known_args()
    torch.set_num_threads(1)
    try:
        config = load_config(CONFIG, ["--model.path", str(options.start / "model"), *rest])
        lengths = {"responses": options.responses, "every": options.every, "samples": options.samples}
        bounds = one_sided(options.sides, config.algorithm)
        train(options.start, config, bounds, **lengths, last_samples=options.last_samples)
    except DcpoError as error:
        parser.exit(error.exit_code, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
