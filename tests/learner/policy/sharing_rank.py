"""A rank that shares the tokens of rows with others; a test starts it: `MODELS RESULT`, a folder of each model."""

import json
import os
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from dcpo_async.algorithm import clipped_loss, fixed_bounds
from learner.nodes.meeting import met
from learner.policy.fitting import fit_to_model
from learner.policy.model import PolicyModel
from learner.policy.packing import MicroBatch, pack
from learner.policy.sequence_parallel import joined_sequence_group
from learner.ranks import MEETING_PLACE
from learner.weights.loading import loaded_model
from tests.learner.policy.test_layout_free_gradient import mixed_samples, share

CPU, DEADLINE = torch.device("cpu"), timedelta(seconds=300)


def of_sequences(batch: MicroBatch, logprobs: Tensor, tokens: slice) -> Tensor:
    """GSPO's loss: the ratio of a token is that of its whole response, wherever its tokens are computed."""
    return clipped_loss(
        logprobs,
        batch.behavior_logprobs[tokens],
        batch.advantages[tokens],
        batch.token_weights[tokens],
        bounds=partial(fixed_bounds, epsilon_low=0.5, epsilon_high=0.5, max_ratio=10.0),
        max_ratio=10.0,
        sequences=batch.sequences[tokens],
    ).loss


def measured(policy: PolicyModel, batch: MicroBatch, *, is_whole: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, scores and gradient of a row on this rank."""
    policy.zero_grad()
    loss = partial(of_sequences if is_whole else share, batch)
    scores = policy(batch, loss, is_whole=is_whole)
    scores.loss.backward()
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in policy.parameters()]
    value = loss(scores.logprobs, slice(None))
    return value, torch.stack([scores.logprobs, scores.entropies]), torch.cat([grad.flatten() for grad in found])


def main() -> None:
    """Write how far losses, scores and gradients of shared rows are from those of rows that a rank has alone."""
    rank, num_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(
        "gloo", store=met(os.environ[MEETING_PLACE], rank, num_ranks, DEADLINE), rank=rank, world_size=num_ranks
    )
    group, samples = joined_sequence_group(num_ranks, DEADLINE), mixed_samples()
    # Of several lengths and one longer than all others, one whose prompt fills a part, and nothing at all.
    rows = {"mixed": samples, "one": samples[5:6], "short": samples[:1], "nothing": []}
    result: dict[str, dict[str, list[float]]] = {}
    for folder in sorted(Path(sys.argv[1]).iterdir()):
        model = loaded_model(folder, torch.float32)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        policy = PolicyModel(model, temperature=0.7, sequence_group=group).train()
        fit_to_model(policy, CPU)
        for name, chosen in rows.items():
            for is_whole in (False, True):
                batch = pack(chosen)
                shared = measured(policy, batch, is_whole=is_whole)
                dist.all_reduce(shared[2])
                policy.sequence_group = None
                alone = measured(policy, batch, is_whole=is_whole)
                policy.sequence_group = group
                differences = [float((a - b).detach().norm()) for a, b in zip(shared, alone, strict=True)]
                result[f"{folder.name}, {name}, {is_whole}"] = {
                    "difference": differences, "norm": [float(value.detach().norm()) for value in alone],
                }  # fmt: skip
    Path(sys.argv[2]).with_suffix(f".{rank}").write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
