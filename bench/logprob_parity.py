"""vLLM's log-probs of its own responses against the learner's: `python -m bench.logprob_parity MODEL …`."""

import argparse
import asyncio
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

from actor.engine.choice import add_engine_arguments, make_engine
from dcpo_async.algorithm import clip_bounds
from dcpo_async.prompts import encode_prompts, load, problem_source
from dcpo_async.records import Lease, Response, Sampling, TrainingSample
from learner.policy.fitting import fit_to_model
from learner.policy.model import PolicyModel
from learner.policy.packing import pack
from learner.weights.loading import loaded_model


def main() -> None:
    """Generate, compute again, print the differences, and how many tokens DCPO would clip for nothing but them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--problems", required=True)
    parser.add_argument("--limit", type=int, default=32)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--max-response-tokens", type=int, default=64)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    add_engine_arguments(parser)
    options = parser.parse_args()
    leases, groups = asyncio.run(generate(options))
    samples = [training_sample(lease, r) for lease, group in zip(leases, groups, strict=True) for r in group]
    theirs = np.concatenate([sample.behavior_logprobs for sample in samples])
    ours = learner_logprobs(options, samples)
    difference = np.abs(ours - theirs)
    ratios = np.exp(ours - theirs)
    low, high = (bound.numpy() for bound in clip_bounds(torch.from_numpy(theirs), 0.16, 0.2, 10.0))
    print(
        f"{len(samples)} responses, {len(theirs)} tokens, temperature {options.temperature}, {options.dtype}: "
        f"mean difference {difference.mean():.2e}, of 99 % at most {np.quantile(difference, 0.99):.2e}, largest "
        f"{difference.max():.2e}; ratios off by {np.abs(ratios - 1).mean():.2e}, "
        f"{((ratios < low) | (ratios > high)).mean():.3%} of them outside DCPO's bounds"
    )


async def generate(options: argparse.Namespace) -> tuple[list[Lease], list[tuple[Response, ...]]]:
    """Groups of responses of one weights version."""
    problems = load(problem_source(options.problems)).problems[: options.limit]
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    prompts = encode_prompts(problems, tokenizer, None, "{problem}", 512).prompts
    leases = [
        Lease(place, 1, prompt.id, 1, 1, np.asarray(prompt.token_ids, dtype=np.int32), prompt.answer)
        for place, prompt in enumerate(prompts)
    ]
    sampling = Sampling(options.samples, options.temperature, options.max_response_tokens, 0)
    engine = make_engine(
        options,
        dtype=options.dtype,
        max_model_tokens=max(len(prompt.token_ids) for prompt in prompts) + options.max_response_tokens,
        max_responses=128,
        kv_after_update="keep",
    )
    await engine.start(options.model, 1, None)
    try:
        return leases, list(await asyncio.gather(*(engine.generate(lease, sampling) for lease in leases)))
    finally:
        await engine.close()


def training_sample(lease: Lease, response: Response) -> TrainingSample:
    """A response as a trainer rank sees it."""
    assert len(response.segments) == 1
    return TrainingSample(
        position=lease.position,
        index=0,
        prompt_token_ids=lease.prompt_token_ids,
        token_ids=response.token_ids,
        behavior_logprobs=response.behavior_logprobs,
        old_logprobs=response.behavior_logprobs,
        token_lags=np.zeros(len(response.token_ids), dtype=np.int32),
        advantage=1.0,
        token_weight=1.0,
    )


@torch.no_grad()
def learner_logprobs(options: argparse.Namespace, samples: list[TrainingSample]) -> np.ndarray:
    """The trainer's own log-probs, float32 [tokens of all samples]."""
    model = loaded_model(options.model, getattr(torch, options.dtype))
    policy = PolicyModel(model, options.temperature).eval()
    fit_to_model(policy, torch.device("cpu"))
    return np.concatenate([policy(pack([sample])).logprobs.numpy() for sample in samples])


if __name__ == "__main__":
    main()
