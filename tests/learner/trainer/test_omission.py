"""Leaving out the samples of advantage 0 does not change a step's gradient."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from learner.policy.fitting import fit_to_model
from learner.policy.model import PolicyModel
from learner.policy.packing import pack, plan_micro_batches
from tests.learner.policy.test_layout_free_gradient import mixed_samples, share
from tests.learner.ranks import run_ranks
from tests.learner.trainer.omission_rank import ARMS
from tests.learner.trainer.test_trainer import make_config
from tests.tiny_model import make_tiny_model


@pytest.mark.system
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "zero_stage",
    [pytest.param(0, marks=pytest.mark.thorough), pytest.param(1, marks=pytest.mark.thorough), 2, 3],
)
async def test_two_ranks_have_the_gradient_that_they_have_without_omission(tmp_path: Path, zero_stage: int) -> None:
    config = make_config(tmp_path / "run", training={"zero_stage": zero_stage, "micro_batch_tokens": 60})
    (tmp_path / "config.json").write_text(config.model_dump_json())
    words = (tmp_path / "config.json", tmp_path / "found.json")
    await run_ranks("tests.learner.trainer.omission_rank", *words, folder=tmp_path)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["arms"].keys() == ARMS.keys()
    for name, (norm, difference) in found["arms"].items():
        assert norm > 1e-3, name
        assert difference <= 1e-6 * norm, name
    assert found["of no samples"] == 0


def test_in_float64_the_gradient_is_the_same_but_for_the_grouping_of_sums(tmp_path: Path) -> None:
    make_tiny_model(tmp_path, seed=0)
    policy = PolicyModel(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64), temperature=1.0)
    fit_to_model(policy, torch.device("cpu"))
    samples = mixed_samples()
    samples[1::3] = [dataclasses.replace(sample, advantage=0.0) for sample in samples[1::3]]

    def gradient(chosen_samples: list) -> torch.Tensor:  # type: ignore[type-arg]
        policy.zero_grad()
        for chosen in plan_micro_batches(chosen_samples, 60, one_by_one=False):
            batch = pack([chosen_samples[i] for i in chosen])
            policy(batch, partial(share, batch)).loss.backward()
        return torch.cat([parameter.grad.flatten() for parameter in policy.parameters() if parameter.grad is not None])

    whole, part = gradient(samples), gradient([sample for sample in samples if sample.has_gradient])
    assert whole.dtype == torch.float64
    assert whole.norm() > 0.01
    torch.testing.assert_close(part, whole, atol=1e-12, rtol=1e-12)
