from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from dcpo_async.algorithm import policy_loss
from dcpo_async.records import TrainingSample
from learner.policy.fitting import fit_to_model
from learner.policy.model import PolicyModel
from learner.policy.packing import MicroBatch, pack, plan_micro_batches
from tests.tiny_model import make_tiny_model


def mixed_samples() -> list[TrainingSample]:
    generator = np.random.default_rng(5)
    samples = []
    for index, length in enumerate((1, 9, 0, 17, 4, 30, 2, 12)):
        samples.append(
            TrainingSample(
                position=0,
                index=index,
                prompt_token_ids=generator.integers(4, 64, 3 + index, dtype=np.int32),
                token_ids=generator.integers(4, 64, length, dtype=np.int32),
                behavior_logprobs=generator.normal(-4.2, 0.3, length).astype(np.float32),
                old_logprobs=np.zeros(length, dtype=np.float32),
                token_lags=np.zeros(length, dtype=np.int32),
                advantage=float(generator.normal()),
                token_weight=1 / (max(1, length) * 8),
            )
        )
    return samples


def share(batch: MicroBatch, logprobs: torch.Tensor, tokens: slice) -> torch.Tensor:
    return policy_loss(
        logprobs,
        batch.behavior_logprobs[tokens],
        batch.advantages[tokens],
        batch.token_weights[tokens],
        epsilon_low=0.16,
        epsilon_high=0.20,
        max_ratio=10.0,
    ).loss


def gradient(policy: PolicyModel, samples: list[TrainingSample], plan: list[list[int]]) -> torch.Tensor:
    policy.zero_grad()
    for chosen in plan:
        batch = pack([samples[i] for i in chosen])
        policy(batch, partial(share, batch)).loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in policy.parameters() if parameter.grad is not None])


@pytest.mark.parametrize("max_tokens", [1, 40, 100])
def test_the_gradient_of_micro_batches_adds_up_to_that_of_one_batch(tmp_path: Path, max_tokens: int) -> None:
    make_tiny_model(tmp_path, seed=0)
    policy = PolicyModel(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32), temperature=1.0)
    fit_to_model(policy, torch.device("cpu"))
    samples = mixed_samples()
    plan = plan_micro_batches(samples, max_tokens, one_by_one=False)
    whole = gradient(policy, samples, [[i for chosen in plan for i in chosen]])
    # An idle rank's empty micro-batch takes part and adds nothing.
    parts = gradient(policy, samples, [*plan, []])
    assert len(plan) > 1
    assert whole.norm() > 0.01
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-4)
