"""The KL term against the equation, by loops and numbers worked by hand."""

import math

import pytest
import torch

from dcpo_async.algorithm import reference_kl
from dcpo_async.errors import AlgorithmError


def test_the_worked_example_and_its_derivative() -> None:
    policy = torch.tensor([math.log(0.5)], dtype=torch.float64, requires_grad=True)
    kl = reference_kl(policy, torch.tensor([math.log(0.25)], dtype=torch.float64))
    assert kl.item() == pytest.approx(0.5 - math.log(0.5) - 1)
    assert torch.autograd.grad(kl.sum(), policy)[0].item() == pytest.approx(0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_equation_at_every_token_and_nowhere_negative(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    policy, reference = (-5 * torch.rand(200, generator=generator, dtype=torch.float64) for _ in range(2))
    reference[:50] = policy[:50]
    reference[50:100] = policy[50:100] + 1e-6
    leaf = policy.to(dtype).requires_grad_()
    found = reference_kl(leaf, reference.to(dtype))
    (slopes,) = torch.autograd.grad(found.sum(), leaf)
    assert (found >= 0).all()
    assert (found[:50] == 0).all()
    assert (slopes[:50] == 0).all()
    for place, (p, q) in enumerate(zip(policy.tolist(), reference.tolist(), strict=True)):
        ratio = math.exp(q - p)
        assert found[place].item() == pytest.approx(ratio - math.log(ratio) - 1, abs=1e-5, rel=1e-5)
        assert slopes[place].item() == pytest.approx(1 - ratio, abs=1e-5, rel=1e-5)


def test_its_mean_over_samples_of_the_policy_is_the_divergence() -> None:
    policy, reference = (torch.tensor(p, dtype=torch.float64) for p in ([0.5, 0.3, 0.2], [0.2, 0.2, 0.6]))
    expected = (policy * reference_kl(policy.log(), reference.log())).sum()
    assert expected.item() == pytest.approx((policy * (policy / reference).log()).sum().item())


def test_what_is_not_finite_or_far_away_has_no_gradient() -> None:
    policy = torch.tensor([math.nan, -1.0, -50.0, -1.0], requires_grad=True)
    found = reference_kl(policy, torch.tensor([-1.0, -math.inf, -1.0, -1.5]))
    (slopes,) = torch.autograd.grad(found.sum(), policy)
    assert found[:2].tolist() == [0.0, 0.0]
    assert found[2].item() == pytest.approx(math.expm1(20) - 20, rel=1e-6)
    assert slopes[:3].tolist() == [0.0, 0.0, 0.0]
    assert slopes[3].item() == pytest.approx(1 - math.exp(-0.5), rel=1e-6)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(AlgorithmError, match="flat"):
        reference_kl(torch.zeros(2), torch.zeros(3))
