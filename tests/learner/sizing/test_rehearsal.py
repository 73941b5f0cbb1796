"""A micro-batch without data against the same one with data, counted by the same counter."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from learner.policy.fitting import fit_to_model
from learner.policy.model import PolicyModel
from learner.policy.packing import pack_sequences
from learner.sizing.rehearsal import counting, policy_without_data, rehearse
from tests.tiny_families import ALL, FAMILIES

SEQUENCES, LENGTH = 3, 40


def config_of(family: str) -> Any:
    return AutoConfig.for_model(family, **ALL | FAMILIES[family])


def really_lived(family: str, *, checkpointing: bool) -> int:
    """Bytes that a real micro-batch makes on the CPU, at their peak."""
    model = AutoModelForCausalLM.from_config(config_of(family), dtype=torch.float32)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    policy = PolicyModel(model, 1.0).train()
    fit_to_model(policy, torch.device("cpu"))
    number = SEQUENCES if policy.is_packed else 1
    batch = pack_sequences([list(range(LENGTH))] * number)
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    held = [*policy.parameters(), *policy.buffers(), *(p.grad for p in policy.parameters() if p.grad is not None)]
    with counting(held) as live:
        policy(batch, lambda logprobs, _: logprobs.sum()).loss.backward()
    return live.peak


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi", "qwen3_moe", "deepseek_v3"])
def test_a_rehearsal_counts_what_a_real_micro_batch_makes(family: str, checkpointing: bool) -> None:
    policy = policy_without_data(config_of(family), torch.float32)
    number = SEQUENCES if policy.is_packed else 1
    tokens, rows = number * LENGTH, number * (LENGTH - 1)
    found = rehearse(policy, device="cpu", tokens=tokens, rows=rows, checkpointing=checkpointing)
    assert found.peak == pytest.approx(really_lived(family, checkpointing=checkpointing), rel=0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_rehearsed_on_both_kinds_of_device(family: str) -> None:
    for device, dtype in (("cuda", torch.bfloat16), ("cpu", torch.float32)):
        policy = policy_without_data(config_of(family), dtype)
        few, many = (
            rehearse(policy, device=device, tokens=tokens, rows=tokens // 2, checkpointing=True)
            for tokens in (256, 512)
        )
        assert 0 < few.peak < many.peak


def test_the_head_counts_with_the_response_tokens_and_checkpointing_saves() -> None:
    config = AutoConfig.for_model("llama", **ALL | {"vocab_size": 32000})
    policy = policy_without_data(config, torch.bfloat16)
    sizes = [
        rehearse(policy, device="cuda", tokens=4096, rows=rows, checkpointing=checkpointing).peak
        for rows, checkpointing in ((1, True), (4096, True), (4096, False))
    ]
    assert sizes == sorted(set(sizes))
