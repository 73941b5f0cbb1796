"""policy_loss against a slow loop in the paper's notation, on both sides of every bound."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dcpo_async.algorithm import PolicyLoss, policy_loss
from dcpo_async.errors import AlgorithmError

EPS_LOW, EPS_HIGH, R_MAX = 0.16, 0.20, 10.0


def token_loss(A: float, r: float, q: float, r_max: float = R_MAX) -> float:
    low = 0.5 + 0.5 * math.sqrt(max(1 - 4 * EPS_LOW / q, 0))
    high = min(0.5 + 0.5 * math.sqrt(1 + 4 * EPS_HIGH / q), r_max)
    clip = max(low, min(r, high))
    loss = max(-A * r, -A * clip)
    return min(loss, -A * r_max) if A < 0 else loss


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def loss_of(
    q: float,
    r: float,
    A: float,
    weight: float = 1.0,
    r_max: float = R_MAX,
    importance: float | None = None,
) -> tuple[PolicyLoss, float]:
    """The loss of one token of old probability q at ratio r, and the gradient of its log-prob."""
    policy = column(math.log(q) + math.log(r)).requires_grad_()
    out = policy_loss(
        policy,
        column(math.log(q)),
        column(A),
        column(weight),
        epsilon_low=EPS_LOW,
        epsilon_high=EPS_HIGH,
        max_ratio=r_max,
        importance_weights=None if importance is None else column(importance),
    )
    out.loss.backward()
    assert policy.grad is not None
    return out, float(policy.grad)


@given(
    st.floats(1e-30, 1.0),
    st.floats(1e-6, 1e6),
    st.floats(-3.0, 3.0),
    st.floats(0.0, 2.0),
    st.sampled_from([1.0, 2.0, 10.0]),
)
def test_the_loss_agrees_with_the_equations(q: float, r: float, A: float, weight: float, r_max: float) -> None:
    out, _ = loss_of(q, r, A, weight, r_max)
    assert float(out.loss.detach()) == pytest.approx(weight * token_loss(A, r, q, r_max), rel=1e-9, abs=1e-9)


# q = 0.9 is bounded to 0.7687..1.1872 and q = 0.01 to 0.5..5.0.
@pytest.mark.parametrize(
    ("q", "r", "A"),
    [
        (0.9, 1.187, 1.0),
        (0.9, 0.1, 1.0),
        (0.9, 0.769, -1.0),
        (0.9, 9.99, -1.0),
        (0.01, 4.99, 0.5),
        (0.01, 0.51, -0.5),
        (0.01, 9.99, -0.5),
    ],
)
def test_a_token_inside_its_bounds_has_gradient_minus_a_r_w(q: float, r: float, A: float) -> None:
    out, gradient = loss_of(q, r, A, weight=0.25)
    assert not (out.clipped_high | out.clipped_low | out.dual_clipped).any()
    assert gradient == pytest.approx(-A * r * 0.25, rel=1e-12)


@pytest.mark.parametrize(
    ("q", "r", "A", "loss", "flag"),
    [
        (0.9, 1.188, 1.0, -1.187184, "clipped_high"),
        (0.01, 5.01, 1.0, -5.0, "clipped_high"),
        (1e-30, 10.01, 1.0, -10.0, "clipped_high"),
        (0.9, 0.768, -1.0, 0.76874, "clipped_low"),
        (0.01, 0.49, -2.0, 1.0, "clipped_low"),
        (0.9, 10.01, -1.0, 10.0, "dual_clipped"),
        (0.01, 1000.0, -2.0, 20.0, "dual_clipped"),
    ],
)
def test_a_token_beyond_its_bound_is_flagged_and_has_no_gradient(
    q: float, r: float, A: float, loss: float, flag: str
) -> None:
    out, gradient = loss_of(q, r, A)
    raised = [name for name in ("clipped_high", "clipped_low", "dual_clipped", "nonfinite") if getattr(out, name).any()]
    assert raised == [flag]
    assert float(out.loss.detach()) == pytest.approx(loss, abs=1e-5)
    assert gradient == 0.0


@pytest.mark.parametrize("r", [0.01, 1.0, 1e6])
def test_an_advantage_of_zero_costs_nothing_and_is_never_clipped(r: float) -> None:
    out, gradient = loss_of(0.9, r, 0.0)
    assert (float(out.loss.detach()), gradient) == (0.0, 0.0)
    assert not (out.clipped_high | out.clipped_low | out.dual_clipped).any()


def test_an_unchanged_token_learns_in_full_even_with_bounds_of_one() -> None:
    policy = column(-0.5, -0.5).requires_grad_()
    out = policy_loss(policy, policy.detach(), column(1, -1), column(1, 1), epsilon_low=0, epsilon_high=0, max_ratio=1)
    out.loss.backward()
    assert not (out.clipped_high | out.clipped_low | out.dual_clipped).any()
    assert policy.grad.tolist() == [-1.0, 1.0]


def test_the_gradient_agrees_with_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(64, generator=generator, dtype=torch.float64) * 6
    policy = (old + torch.randn(64, generator=generator, dtype=torch.float64)).requires_grad_()
    advantages = torch.randn(64, generator=generator, dtype=torch.float64)
    weights = torch.rand(64, generator=generator, dtype=torch.float64)

    def loss(logprobs: Tensor) -> Tensor:
        return policy_loss(
            logprobs, old, advantages, weights, epsilon_low=EPS_LOW, epsilon_high=EPS_HIGH, max_ratio=R_MAX
        ).loss

    assert torch.autograd.gradcheck(loss, (policy,))


def test_importance_weights_multiply_loss_and_gradient() -> None:
    plain, plain_gradient = loss_of(0.5, 1.1, -1.5, weight=0.5)
    weighted, gradient = loss_of(0.5, 1.1, -1.5, weight=0.5, importance=1.7)
    assert float(weighted.loss.detach()) == pytest.approx(1.7 * float(plain.loss.detach()), rel=1e-12)
    assert gradient == pytest.approx(1.7 * plain_gradient, rel=1e-12)


def test_only_the_policy_logprobs_receive_a_gradient() -> None:
    tensors = [column(-0.5).requires_grad_() for _ in range(5)]
    policy, old, advantages, weights, importance = tensors
    out = policy_loss(
        policy,
        old,
        advantages,
        weights,
        epsilon_low=EPS_LOW,
        epsilon_high=EPS_HIGH,
        max_ratio=R_MAX,
        importance_weights=importance,
    )
    out.loss.backward()
    assert [tensor.grad is not None for tensor in tensors] == [True, False, False, False, False]
    assert not out.ratio.requires_grad


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", range(5))
def test_a_non_finite_token_is_masked_and_the_others_learn_as_before(bad: float, place: int) -> None:
    rows = [
        column(-1.0, -0.7, -2.0),
        column(-1.1, -0.7, -2.1),
        column(1, -1, 1),
        column(1, 2, 3),
        column(1, 1, 2),
    ]
    rows[place][1] = bad
    policy = rows[0].requires_grad_()
    out = policy_loss(
        policy,
        rows[1],
        rows[2],
        rows[3],
        epsilon_low=EPS_LOW,
        epsilon_high=EPS_HIGH,
        max_ratio=R_MAX,
        importance_weights=rows[4],
    )
    out.loss.backward()
    r = math.exp(0.1)
    assert out.nonfinite.tolist() == [False, True, False]
    assert out.ratio.tolist() == pytest.approx([r, 1.0, r])
    assert float(out.loss.detach()) == pytest.approx(-r - 6 * r)
    assert policy.grad.tolist() == pytest.approx([-r, 0.0, -6 * r])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("policy_logprob", "old_logprob"), [(-2.0, -91.0), (-91.0, -2.0), (-1e30, 0.0)])
@pytest.mark.parametrize("A", [1.0, -1.0])
def test_a_log_ratio_beyond_twenty_is_held_there(
    policy_logprob: float, old_logprob: float, A: float, dtype: torch.dtype
) -> None:
    policy = torch.tensor([policy_logprob], dtype=dtype, requires_grad=True)
    old = torch.tensor([old_logprob], dtype=dtype)
    out = policy_loss(
        policy,
        old,
        torch.tensor([A]),
        torch.ones(1),
        epsilon_low=EPS_LOW,
        epsilon_high=EPS_HIGH,
        max_ratio=R_MAX,
    )
    out.loss.backward()
    assert abs(math.log(float(out.ratio))) == pytest.approx(20)
    assert math.isfinite(float(out.loss.detach()))
    assert policy.grad.tolist() == [0.0]
    assert not out.nonfinite.any()


def test_no_tokens_cost_nothing_and_still_run_backward() -> None:
    policy = torch.empty(0, requires_grad=True)
    empty = torch.empty(0)
    out = policy_loss(policy, empty, empty, empty, epsilon_low=EPS_LOW, epsilon_high=EPS_HIGH, max_ratio=R_MAX)
    out.loss.backward()
    assert float(out.loss.detach()) == 0.0


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("shape", [(1,), (3, 1), ()])
def test_shapes_that_would_broadcast_are_refused(place: int, shape: tuple[int, ...]) -> None:
    tensors = [torch.zeros(3) for _ in range(5)]
    tensors[place] = torch.zeros(shape)
    with pytest.raises(AlgorithmError, match="flat"):
        policy_loss(
            *tensors[:4],
            epsilon_low=EPS_LOW,
            epsilon_high=EPS_HIGH,
            max_ratio=R_MAX,
            importance_weights=tensors[4],
        )


def test_tensors_that_are_not_flat_are_refused_even_if_alike() -> None:
    tensors = [torch.zeros(3, 1) for _ in range(4)]
    with pytest.raises(AlgorithmError, match="flat"):
        policy_loss(*tensors, epsilon_low=EPS_LOW, epsilon_high=EPS_HIGH, max_ratio=R_MAX)


@pytest.mark.parametrize(("place", "name"), [(0, "policy_logprobs"), (1, "old_logprobs")])
def test_coarse_logprobs_are_refused_by_name(place: int, name: str) -> None:
    tensors = [torch.zeros(3) for _ in range(4)]
    tensors[place] = tensors[place].bfloat16()
    with pytest.raises(AlgorithmError, match=f"{name} is torch.bfloat16"):
        policy_loss(*tensors, epsilon_low=EPS_LOW, epsilon_high=EPS_HIGH, max_ratio=R_MAX)


def test_a_setting_out_of_range_is_refused() -> None:
    tensors = [torch.zeros(1) for _ in range(4)]
    with pytest.raises(AlgorithmError, match=r"max_ratio = 0\.5"):
        policy_loss(*tensors, epsilon_low=EPS_LOW, epsilon_high=EPS_HIGH, max_ratio=0.5)
