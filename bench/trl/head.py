"""Memory and time of the head by chunks beside whole logits, each in its own process: `python -m bench.trl.head`."""

import argparse
import json
import os
import subprocess
import sys

import torch
from torch import nn

from bench.trl.measure import Measure
from learner.policy.head import LogitTransform, head_scores

HIDDEN_SIZE = 256


def main() -> None:
    """Print a line for each number of tokens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--vocabulary", type=int, default=49_152)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(run(options.case, options.tokens[0], options.vocabulary))
        return
    for tokens in options.tokens:
        for case in ("chunks", "whole"):
            command = [sys.executable, "-m", "bench.trl.head", "--case", case, "--tokens", str(tokens)]
            command += ["--vocabulary", str(options.vocabulary)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{tokens:6} tokens, {case}: {found['cpu_seconds']:.2f} CPU s, peak {found['peak_mib']:.0f} MiB",
                flush=True,
            )


def run(case: str, tokens: int, vocabulary: int) -> str:
    """A forward and a backward pass of the head in one way."""
    torch.manual_seed(0)
    head = nn.Linear(HIDDEN_SIZE, vocabulary, bias=False)
    hidden = torch.randn(tokens, HIDDEN_SIZE, requires_grad=True)
    token_ids = torch.randint(0, vocabulary, (tokens,))
    measure = Measure()
    measure.start()
    if case == "chunks":
        head_scores(head, hidden, token_ids, 1.0, LogitTransform(), lambda logprobs, _: logprobs.sum()).loss.backward()
    else:
        head(hidden).log_softmax(1).gather(1, token_ids[:, None]).sum().backward()
    return measure.report()


if __name__ == "__main__":
    main()
