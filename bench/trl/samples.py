"""The samples that both sides train on, in a file that both can read."""

import json
from pathlib import Path

import numpy as np


def write_samples(path: Path, vocab_size: int, *, num_groups: int, utilization: float, seed: int) -> tuple[int, int]:
    """Write groups of eight responses, prompts of 60 to 200 tokens, lengths log-normal with a mean near 248.

    Args:
        utilization: RUR, share of the responses with a non-zero advantage.

    Returns:
        Prompt and response tokens in all, and of those with an advantage.
    """
    generator = np.random.default_rng(seed)
    samples = []
    for group in range(num_groups):
        prompt = generator.integers(10, vocab_size, int(generator.integers(60, 201))).tolist()
        for _ in range(8):
            length = int(np.clip(generator.lognormal(5.2, 0.8), 8, 1024))
            samples.append(
                {
                    "group": group,
                    "prompt": prompt,
                    "response": generator.integers(10, vocab_size, length).tolist(),
                    "advantage": float(generator.normal()),
                }
            )
    omitted = generator.choice(len(samples), round((1 - utilization) * len(samples)), replace=False)
    for number in omitted:
        samples[number]["advantage"] = 0.0
    path.write_text(json.dumps(samples))
    lengths = [len(sample["prompt"]) + len(sample["response"]) for sample in samples]
    return sum(lengths), sum(n for n, sample in zip(lengths, samples, strict=True) if sample["advantage"])
