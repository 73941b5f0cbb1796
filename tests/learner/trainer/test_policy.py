import math
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dcpo_async.config import AlgorithmSettings
from learner.trainer.policy import PolicyModel, correction, token_logprobs


def llama(tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            tie_word_embeddings=tied,
            initializer_range=0.2,
        )
    )


def test_token_logprobs_of_a_coin_worked_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, math.log(3.0)]])
    logprobs, entropy = token_logprobs(logits, torch.tensor([1, 0]), temperature=1.0)
    assert logprobs.tolist() == pytest.approx([math.log(0.75), math.log(0.25)], abs=1e-6)
    assert entropy.tolist() == pytest.approx([0.562335, 0.562335], abs=1e-6)


def test_temperature_divides_the_logits() -> None:
    logits = torch.tensor([[0.0, 2 * math.log(3.0)]])
    logprobs, entropy = token_logprobs(logits, torch.tensor([1]), temperature=2.0)
    assert logprobs.item() == pytest.approx(math.log(0.75), abs=1e-6)
    assert entropy.item() == pytest.approx(0.562335, abs=1e-6)


def test_the_gradient_of_token_logprobs_is_that_of_log_softmax_across_chunks() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5000, 11, generator=generator, requires_grad=True)
    token_ids = torch.randint(0, 11, (5000,), generator=generator)
    weights = torch.randn(5000, generator=generator)
    expected = (logits / 0.7).log_softmax(1).gather(1, token_ids[:, None])[:, 0]
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), logits)
    logprobs, entropy = token_logprobs(logits, token_ids, temperature=0.7)
    (gradient,) = torch.autograd.grad((logprobs * weights).sum(), logits)
    torch.testing.assert_close(logprobs, expected)
    torch.testing.assert_close(gradient, expected_gradient)
    assert not entropy.requires_grad


def test_bfloat16_logits_are_normalized_in_float32() -> None:
    logits = torch.randn(7, 50, generator=torch.Generator().manual_seed(2)).bfloat16()
    token_ids = torch.arange(7)
    logprobs, _ = token_logprobs(logits, token_ids, temperature=1.0)
    expected = logits.double().log_softmax(1).gather(1, token_ids[:, None])[:, 0]
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs.double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("tied", [False, True])
def test_policy_logprobs_of_a_padded_batch_are_those_of_plain_transformers(tied: bool) -> None:
    model = llama(tied)
    sequences = [([1, 2, 3], [4, 5, 6, 7]), ([9, 8, 7, 6, 5], [4]), ([11], [12, 13])]
    expected = []
    with torch.no_grad():
        for prompt, response in sequences:
            logits = model(torch.tensor([prompt + response])).logits[0].double() / 0.8
            at = torch.arange(len(prompt) - 1, len(prompt) + len(response) - 1)
            expected.append(logits.log_softmax(1)[at, torch.tensor(response)])
    input_ids = torch.zeros(3, 7, dtype=torch.int64)
    for row, (prompt, response) in zip(input_ids, sequences, strict=True):
        row[: len(prompt + response)] = torch.tensor(prompt + response)
    logprobs, entropy = PolicyModel(model, temperature=0.8)(
        input_ids,
        rows=torch.tensor([0, 0, 0, 0, 1, 2, 2]),
        columns=torch.tensor([2, 3, 4, 5, 4, 0, 1]),
        token_ids=torch.tensor([4, 5, 6, 7, 4, 12, 13]),
    )
    torch.testing.assert_close(logprobs.double(), torch.cat(expected), atol=1e-5, rtol=0)
    assert entropy.min() > 0


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({"old": "behavior"}, None),
        ({"old": "proximal", "correction": "none"}, None),
        ({"old": "proximal", "importance_cap": 1.5}, [1.5, 0.25]),
        ({"old": "proximal", "correction": "masked", "importance_mask": (0.5, 3.0)}, [3.0, 0.0]),
    ],
)
def test_the_correction_is_the_one_that_the_settings_name(
    settings: dict[str, Any], weights: list[float] | None
) -> None:
    old, behavior = torch.tensor([0.6, 0.05]).log(), torch.tensor([0.2, 0.2]).log()
    found = correction(AlgorithmSettings(**settings))
    assert weights == (found if found is None else pytest.approx(found(old, behavior).tolist()))
