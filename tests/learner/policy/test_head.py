import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from learner.policy import head as heads
from learner.policy.head import LogitTransform, head_scores


def of_logits(logits: list[list[float]], dtype: torch.dtype = torch.float32) -> tuple[nn.Linear, Tensor]:
    """A head and states that give these logits."""
    table = torch.tensor(logits, dtype=dtype)
    head = nn.Linear(len(logits), table.shape[1], bias=False, dtype=dtype)
    head.weight.data = table.T.contiguous()
    return head, torch.eye(len(logits), dtype=dtype)


def random_head(vocab_size: int, *, bias: bool, dtype: torch.dtype, scale: float = 1.0) -> tuple[nn.Linear, Tensor]:
    torch.manual_seed(0)
    head = nn.Linear(8, vocab_size, bias=bias, dtype=dtype)
    nn.init.normal_(head.weight, std=scale)
    return head, torch.randn(50, 8, dtype=dtype).requires_grad_()


def test_scores_of_a_coin_worked_by_hand() -> None:
    head, hidden = of_logits([[0.0, math.log(3.0)], [0.0, math.log(3.0)]])
    scores = head_scores(head, hidden, torch.tensor([1, 0]), 1.0, LogitTransform(), None)
    assert scores.logprobs.tolist() == pytest.approx([math.log(0.75), math.log(0.25)], abs=1e-6)
    assert scores.entropies.tolist() == pytest.approx([0.562335, 0.562335], abs=1e-6)
    assert scores.loss.item() == 0


def test_temperature_divides_the_logits() -> None:
    head, hidden = of_logits([[0.0, 2 * math.log(3.0)]])
    scores = head_scores(head, hidden, torch.tensor([1]), 2.0, LogitTransform(), None)
    assert scores.logprobs.item() == pytest.approx(math.log(0.75), abs=1e-6)
    assert scores.entropies.item() == pytest.approx(0.562335, abs=1e-6)


@pytest.mark.parametrize("transform", [LogitTransform(), LogitTransform(0.25), LogitTransform(0.5, 3.0)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk_bytes", [1, 7 * 11 * 8, 1 << 30])
def test_gradients_are_those_of_whole_logits_in_any_chunks(
    monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, bias: bool, transform: LogitTransform
) -> None:
    monkeypatch.setitem(heads._CHUNK_BYTES, "cpu", chunk_bytes)
    monkeypatch.setitem(heads._TILE_BYTES, "cpu", chunk_bytes // 2)
    head, hidden = random_head(11, bias=bias, dtype=torch.float64)
    token_ids, weights = torch.randint(0, 11, (50,)), torch.randn(50, dtype=torch.float64)
    logits = head(hidden) * transform.scale
    if transform.cap is not None:
        logits = transform.cap * (logits / transform.cap).tanh()
    log_softmax = (logits / 0.7).log_softmax(1)
    expected = log_softmax.gather(1, token_ids[:, None])[:, 0]
    leaves = (hidden, *head.parameters())
    of_whole = torch.autograd.grad((expected.exp() * weights).sum(), leaves)
    scores = head_scores(head, hidden, token_ids, 0.7, transform, lambda lp, tokens: (lp.exp() * weights[tokens]).sum())
    torch.testing.assert_close(scores.logprobs, expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(scores.entropies, -(log_softmax.exp() * log_softmax).sum(1), atol=1e-12, rtol=1e-12)
    for found, wanted in zip(torch.autograd.grad(scores.loss * 3, leaves), of_whole, strict=True):
        torch.testing.assert_close(found, 3 * wanted, atol=1e-12, rtol=1e-12)


def test_a_bfloat16_head_has_float32_logits() -> None:
    head, hidden = random_head(500, bias=False, dtype=torch.bfloat16, scale=4.0)
    token_ids = torch.arange(50)
    exact = (hidden.double() @ head.weight.double().T).log_softmax(1).gather(1, token_ids[:, None])[:, 0]
    rounded = head(hidden).double().log_softmax(1).gather(1, token_ids[:, None])[:, 0]
    scores = head_scores(head, hidden, token_ids, 1.0, LogitTransform(), None)
    assert scores.logprobs.dtype == torch.float32
    torch.testing.assert_close(scores.logprobs.double(), exact, atol=1e-4, rtol=0)
    assert (rounded - exact).abs().max() > 0.05


def test_the_head_gradient_is_summed_in_float32_over_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(heads._CHUNK_BYTES, "cpu", 1)
    head, hidden = random_head(11, bias=True, dtype=torch.bfloat16)
    token_ids = torch.randint(0, 11, (50,))
    full, states = nn.Linear(8, 11, dtype=torch.float64), hidden.detach().double()
    full.load_state_dict(head.state_dict())
    loss: Any = lambda logprobs, _tokens: logprobs.sum()  # noqa: E731
    head_scores(head, hidden, token_ids, 1.0, LogitTransform(), loss).loss.backward()
    head_scores(full, states, token_ids, 1.0, LogitTransform(), loss).loss.backward()
    for parameter, exact in zip(head.parameters(), full.parameters(), strict=True):
        assert parameter.grad is not None
        assert exact.grad is not None
        assert parameter.grad.dtype == torch.bfloat16
        torch.testing.assert_close(parameter.grad, exact.grad.bfloat16(), atol=0, rtol=2**-7)


def test_a_token_that_cannot_be_sampled_adds_nothing() -> None:
    head, hidden = of_logits([[0.0, 0.0, -math.inf]])
    hidden = hidden.requires_grad_()
    scores = head_scores(head, hidden, torch.tensor([1]), 1.0, LogitTransform(), lambda lp, _: lp.sum())
    assert scores.entropies.item() == pytest.approx(math.log(2))
    assert torch.autograd.grad(scores.loss, head.weight)[0][:, 0].tolist() == pytest.approx([-0.5, 0.5, 0.0])


def test_no_tensor_grows_with_tokens_times_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(heads._CHUNK_BYTES, "cpu", 4 * 1000 * 10)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = function(*args, **kwargs or {})
            sizes = [tensor.numel() for tensor in torch.utils._pytree.tree_leaves(out) if isinstance(tensor, Tensor)]
            largest = max([largest, *sizes])
            return out

    head, hidden = nn.Linear(8, 1000), torch.randn(400, 8, requires_grad=True)
    token_ids = torch.randint(0, 1000, (400,))
    with Watch():
        head_scores(head, hidden, token_ids, 1.0, LogitTransform(), lambda lp, _: lp.sum()).loss.backward()
    # A chunk of ten tokens, or the head's own gradient.
    assert largest == 10_000


def test_a_frozen_head_has_no_gradient_and_the_states_have_theirs() -> None:
    head, hidden = random_head(11, bias=True, dtype=torch.float64)
    token_ids = torch.randint(0, 11, (50,))
    gradients = []
    for is_frozen in (False, True):
        hidden.grad = head.weight.grad = None
        head.requires_grad_(not is_frozen)
        head_scores(head, hidden, token_ids, 1.0, LogitTransform(), lambda lp, _: lp.sum()).loss.backward()
        assert (head.weight.grad is None) == is_frozen
        assert hidden.grad is not None
        gradients.append(hidden.grad)
    assert torch.equal(*gradients)
