from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dcpo_async.config import AlgorithmSettings
from dcpo_async.errors import ConfigError
from dcpo_async.records import TrainingSample
from learner.policy.fitting import fit_to_model
from learner.policy.model import PolicyModel, correction
from learner.policy.packing import pack


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


SEQUENCES = [([1, 2, 3], [4, 5, 6, 7]), ([9, 8, 7, 6, 5], [4]), ([11], [12, 13])]


def sample(index: int, prompt: list[int], response: list[int]) -> TrainingSample:
    logprobs = np.full(len(response), -4.0, dtype=np.float32)
    return TrainingSample(
        position=0,
        index=index,
        prompt_token_ids=np.array(prompt, dtype=np.int32),
        token_ids=np.array(response, dtype=np.int32),
        behavior_logprobs=logprobs,
        old_logprobs=logprobs,
        token_lags=np.zeros(len(response), dtype=np.int32),
        advantage=1.0,
        token_weight=1.0,
    )


def fitted(model: Any, temperature: float = 1.0) -> PolicyModel:
    policy = PolicyModel(model, temperature)
    fit_to_model(policy, torch.device("cpu"))
    return policy


def plain_logprobs(model: Any, temperature: float) -> torch.Tensor:
    """Of the responses, each sequence alone through the model's own forward pass."""
    found = []
    for prompt, response in SEQUENCES:
        logits = model(torch.tensor([prompt + response])).logits[0].double() / temperature
        at = torch.arange(len(prompt) - 1, len(prompt) + len(response) - 1)
        found.append(logits.log_softmax(1)[at, torch.tensor(response)])
    return torch.cat(found)


@pytest.mark.parametrize("tied", [False, True])
def test_logprobs_and_gradient_of_a_packed_batch_are_those_of_plain_transformers(tied: bool) -> None:
    model = llama(tied)
    weights = torch.tensor([0.3, -1.0, 0.5, 2.0, 0.1, -0.4, 1.5])
    expected = plain_logprobs(model, 0.8)
    (expected * weights).sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    policy = fitted(model, 0.8)
    model.zero_grad()
    batch = pack([sample(i, *sequence) for i, sequence in enumerate(SEQUENCES)])
    scores = policy(batch, lambda logprobs, tokens: (logprobs * weights[tokens]).sum())
    scores.loss.backward()
    assert policy.is_packed
    torch.testing.assert_close(scores.logprobs.double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.loss.double(), (expected * weights).sum(), atol=1e-4, rtol=0)
    assert scores.entropies.min() > 0
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-4)


def test_a_loss_of_whole_sequences_has_its_value_and_gradient() -> None:
    model = llama()
    batch = pack([sample(i, *sequence) for i, sequence in enumerate(SEQUENCES)])

    def loss(logprobs: torch.Tensor, tokens: slice) -> torch.Tensor:
        assert tokens == slice(None)
        return logprobs.sum().square()

    expected = plain_logprobs(model, 1.0).sum().square()
    expected.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    policy = fitted(model)
    model.zero_grad()
    scores = policy(batch, loss, is_whole=True)
    scores.loss.backward()
    assert scores.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-3, rtol=1e-3)


def test_a_batch_without_response_tokens_has_a_gradient_of_zero() -> None:
    policy = fitted(llama())
    policy(pack([]), lambda logprobs, tokens: logprobs.sum()).loss.backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in policy.parameters())


def test_a_head_that_is_not_linear_is_refused() -> None:
    model = llama()
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(ConfigError, match="the head of this model is a Sequential"):
        PolicyModel(model, 1.0)


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
