"""The warm start that all arms share under a seed, and how hard its training problems are: a process of its own."""

import argparse
from dataclasses import asdict
from pathlib import Path

import torch

from bench.chains.arms import CONFIG
from bench.chains.plan import START_NAME
from bench.chains.run.measuring import encoded, responses_to
from bench.chains.run.policy import Policy
from bench.chains.run.rollout import is_right
from bench.chains.run.sampling import reader_of
from dcpo_async.config.loading import load_config
from dcpo_async.demo.chain_model import write_start
from dcpo_async.demo.chain_reading import read_facts
from dcpo_async.demo.chains import ChainSizes, ChainTask
from dcpo_async.demo.tasks import BEYOND_THE_CHAIN
from dcpo_async.durable import write_json

SAMPLES = 32


def main() -> None:
    """Draw the task, warm a model up, and measure it on the problems that it will train on."""
    parser = argparse.ArgumentParser(prog="python -m bench.chains.run.start")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--sizes", nargs="*", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = ChainTask.drawn(ChainSizes.read(options.sizes), options.seed)
    loss = write_start(task, options.out, steps=options.steps)
    longest = str(task.sizes.longest + BEYOND_THE_CHAIN)
    words = ["--model.path", str(options.out / "model"), "--sampling.max_response_tokens", longest]
    config = load_config(CONFIG, words)
    policy = Policy(config)
    prompts, text = encoded(config, task.train, policy.tokenizer), reader_of(policy.tokenizer)
    found = responses_to(prompts, policy.sampler, SAMPLES, config, policy.tokenizer.eos_token_id, seed=0)
    rates = [
        sum(is_right(text(response.token_ids), prompt.answer) for response in group) / SAMPLES
        for prompt, group in zip(prompts, found, strict=True)
    ]
    facts = asdict(read_facts(policy.sampler, policy.tokenizer, task.table))
    write_json(options.out / START_NAME, {"loss": loss, "pass_rates": rates, **facts})


if __name__ == "__main__":
    main()
