"""The gradient of a batch is the same for every micro-batching, order and number of ranks."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dcpo_async.algorithm import TokenDiagnostics, only_token_mean_weights, policy_loss

VOCABULARY, GROUP_SIZE, NUM_GROUPS = 11, 4, 3
LENGTHS = [5, 1, 9, 3, 2, 2, 7, 0, 4, 6, 1, 8]


class Batch:
    """Twelve responses of a tiny bigram model, as flat rows of tokens."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        weights = only_token_mean_weights(LENGTHS, GROUP_SIZE, NUM_GROUPS)
        advantages = torch.randn(len(LENGTHS), generator=generator, dtype=torch.float64)
        lengths = torch.tensor(LENGTHS)
        self.response = torch.arange(len(LENGTHS)).repeat_interleave(lengths)
        self.weights = torch.tensor(weights, dtype=torch.float64)[self.response]
        self.advantages = advantages[self.response]
        num_tokens = int(lengths.sum())
        self.inputs = torch.randint(VOCABULARY, (num_tokens,), generator=generator)
        self.targets = torch.randint(VOCABULARY, (num_tokens,), generator=generator)
        self.old = -0.2 - 4 * torch.rand(num_tokens, generator=generator, dtype=torch.float64)
        self.behavior = self.old + 0.05
        self.parameters = torch.randn(VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64)

    def run(self, micro_batches: list[list[int]]) -> tuple[Tensor, TokenDiagnostics]:
        """The summed gradient and diagnostics of micro-batches given as lists of token numbers."""
        parameters = self.parameters.clone().requires_grad_()
        diagnostics = TokenDiagnostics.zeros()
        for tokens in micro_batches:
            rows = torch.tensor(tokens, dtype=torch.long)
            logprobs = parameters[self.inputs[rows]].log_softmax(-1)
            policy = logprobs.gather(-1, self.targets[rows, None]).squeeze(-1)
            entropy = -(logprobs.exp() * logprobs).sum(-1)
            old, advantages = self.old[rows], self.advantages[rows]
            out = policy_loss(
                policy, old, advantages, self.weights[rows], epsilon_low=0.16, epsilon_high=0.2, max_ratio=3.0
            )
            out.loss.backward()
            lag = self.response[rows] % 3
            diagnostics += TokenDiagnostics.of_tokens(policy, old, self.behavior[rows], advantages, out, entropy, lag)
        assert parameters.grad is not None
        return parameters.grad, diagnostics


BATCH = Batch()
NUM_TOKENS = sum(LENGTHS)


def split(tokens: list[int], cuts: list[int]) -> list[list[int]]:
    edges = [0, *sorted(cuts), len(tokens)]
    return [tokens[start:end] for start, end in itertools.pairwise(edges)]


def test_the_batch_exercises_every_kind_of_token() -> None:
    _, diagnostics = BATCH.run([list(range(NUM_TOKENS))])
    summary = diagnostics.summary()
    assert 0.1 < summary["tcr"] < 0.9
    assert 0.02 < summary["dual_clip_rate"] < 0.5


@settings(max_examples=40, deadline=None)
@given(
    st.permutations(range(NUM_TOKENS)),
    st.lists(st.integers(0, NUM_TOKENS), max_size=6),
    st.integers(1, 4),
)
def test_gradient_and_metrics_do_not_depend_on_the_layout(order: list[int], cuts: list[int], num_ranks: int) -> None:
    whole_gradient, whole = BATCH.run([list(range(NUM_TOKENS))])
    micro_batches = split(list(order), cuts)
    # A rank without micro-batches runs an empty one, as padding does.
    ranks = [BATCH.run(micro_batches[rank::num_ranks] or [[]]) for rank in range(num_ranks)]
    gradient = torch.stack([rank_gradient for rank_gradient, _ in ranks]).sum(0)
    assert torch.allclose(gradient, whole_gradient, rtol=0, atol=1e-12)
    merged = TokenDiagnostics(torch.stack([diagnostics.sums for _, diagnostics in ranks]).sum(0)).summary()
    expected = whole.summary()
    for metrics in (merged, expected):
        del metrics["tcr_micro_batch_mean"]
    assert merged == pytest.approx(expected, rel=1e-12)


def test_the_batch_gradient_is_the_mean_of_the_response_means() -> None:
    """The same loss written response by response, without token weights."""
    parameters = BATCH.parameters.clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for response in range(len(LENGTHS)):
        rows = (BATCH.response == response).nonzero().squeeze(-1)
        if len(rows) == 0:
            continue
        policy = parameters[BATCH.inputs[rows]].log_softmax(-1).gather(-1, BATCH.targets[rows, None]).squeeze(-1)
        r, A, q = (policy - BATCH.old[rows]).exp(), BATCH.advantages[rows], BATCH.old[rows].exp()
        low = 0.5 + 0.5 * (1 - 4 * 0.16 / q).clamp(min=0).sqrt()
        high = (0.5 + 0.5 * (1 + 4 * 0.2 / q).sqrt()).clamp(max=3.0)
        losses = torch.maximum(-A * r, -A * r.clamp(low, high))
        losses = torch.where(A < 0, torch.minimum(losses, -A * 3.0), losses)
        total = total + losses.mean() / (GROUP_SIZE * NUM_GROUPS)
    total.backward()
    gradient, _ = BATCH.run([list(range(NUM_TOKENS))])
    assert torch.allclose(gradient, parameters.grad, rtol=0, atol=1e-12)
