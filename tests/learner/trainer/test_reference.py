"""The KL term in a real step of two ranks, against one that torch takes by itself in float64."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from dcpo_async.records import TrainingSample
from tests.learner.ranks import run_ranks
from tests.learner.trainer.reference_rank import COEFFICIENT, samples_of
from tests.learner.trainer.test_trainer import make_config

TEMPERATURE = 0.7
EPSILON_LOW, EPSILON_HIGH = 0.16, 0.20


def logprobs_of(model: torch.nn.Module, sample: TrainingSample) -> torch.Tensor:
    tokens = torch.tensor([*sample.prompt_token_ids.tolist(), *sample.token_ids.tolist()])
    logits = model(input_ids=tokens[None]).logits[0] / TEMPERATURE
    start = len(sample.prompt_token_ids)
    return logits.log_softmax(-1)[torch.arange(start - 1, len(tokens) - 1), tokens[start:]]


def expected_loss(policy: torch.nn.Module, reference: torch.nn.Module) -> tuple[torch.Tensor, float]:
    """DCPO's loss and β·KL, token by token, as the papers have them; and the mean of the KL."""
    total, kls = torch.zeros((), dtype=torch.float64), []
    for sample in samples_of():
        if not len(sample.token_ids):
            continue
        logprobs = logprobs_of(policy, sample)
        with torch.no_grad():
            anchors = logprobs_of(reference, sample)
        for logprob, anchor, behavior in zip(logprobs, anchors, sample.behavior_logprobs.tolist(), strict=True):
            q, ratio, advantage = torch.tensor(behavior).double().exp(), (logprob - behavior).exp(), sample.advantage
            low = 0.5 + 0.5 * (1 - 4 * EPSILON_LOW / q).clamp(min=0).sqrt()
            high = (0.5 + 0.5 * (1 + 4 * EPSILON_HIGH / q).sqrt()).clamp(max=10.0)
            term = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(low, high))
            if advantage < 0:
                term = torch.minimum(term, torch.tensor(-advantage * 10.0).double())
            u = (anchor - logprob).exp()
            kl = u - u.log() - 1
            kls.append(kl.item())
            total = total + sample.token_weight * (term + COEFFICIENT * kl)
    return total, sum(kls) / len(kls)


@pytest.mark.system
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "zero_stage", [pytest.param(0, marks=pytest.mark.thorough), pytest.param(2, marks=pytest.mark.thorough), 3]
)
async def test_loss_gradient_and_metric_are_those_of_the_equations(tmp_path: Path, zero_stage: int) -> None:
    config = make_config(
        tmp_path / "run",
        training={"zero_stage": zero_stage, "micro_batch_tokens": 60},
        algorithm={"kl_coefficient": COEFFICIENT},
        sampling={"temperature": TEMPERATURE},
    )
    (tmp_path / "config.json").write_text(config.model_dump_json())
    words = (tmp_path / "config.json", tmp_path / "found.pt")
    await run_ranks("tests.learner.trainer.reference_rank", *words, folder=tmp_path)
    found, metrics = torch.load(tmp_path / "found.pt"), json.loads((tmp_path / "found.json").read_text())
    policy, reference = (AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float64) for _ in range(2))
    named = {f"model.{name}": parameter for name, parameter in policy.named_parameters()}
    assert named.keys() == found["weights"].keys()
    for name, parameter in named.items():
        parameter.data.copy_(found["weights"][name])
    loss, kl = expected_loss(policy, reference)
    loss.backward()
    assert metrics["first"] == pytest.approx(0, abs=1e-9)
    assert kl > 0.01
    assert metrics["kl"] == pytest.approx(kl, rel=1e-4)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-4)
    norm = torch.stack([parameter.grad.norm() for parameter in named.values()]).norm()
    # Both ranks' gradients are summed before they are scaled to the mean.
    for name, parameter in named.items():
        difference = (found["gradients"][name].double() - parameter.grad).norm()
        assert difference <= 1e-4 * norm, name
