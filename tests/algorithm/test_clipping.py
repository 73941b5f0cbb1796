"""clip_bounds against the equations, from certain tokens to impossible ones."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dcpo_async.algorithm import clip_bounds
from dcpo_async.errors import AlgorithmError


def oracle(q: float, eps_low: float, eps_high: float, r_max: float) -> tuple[float, float]:
    low = 0.5 + 0.5 * math.sqrt(max(1 - 4 * eps_low / q, 0))
    high = 0.5 + 0.5 * math.sqrt(1 + 4 * eps_high / q)
    return low, min(high, r_max)


@pytest.mark.parametrize(
    ("q", "low", "high"),
    [(0.9, 0.7687, 1.1872), (0.01, 0.5, 5.0), (1.0, 0.8, 1.1708), (0.64, 0.5, 1.25), (1e-30, 0.5, 10.0)],
)
def test_worked_examples(q: float, low: float, high: float) -> None:
    bounds = clip_bounds(torch.tensor([q], dtype=torch.float64).log())
    assert [float(bound) for bound in bounds] == pytest.approx([low, high], abs=5e-5)


@given(
    st.floats(-69.0, 0.0),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
    st.floats(1.0, 100.0),
)
def test_bounds_agree_with_the_equations(logprob: float, low: float, high: float, r_max: float) -> None:
    bounds = clip_bounds(torch.tensor([logprob], dtype=torch.float64), low, high, r_max)
    assert [float(bound) for bound in bounds] == pytest.approx(oracle(math.exp(logprob), low, high, r_max), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("epsilon", [0.0, 0.16, 1e6])
def test_no_probability_is_too_small(dtype: torch.dtype, epsilon: float) -> None:
    logprobs = torch.tensor([0.0, -1.0, -69.0, -88.0, -104.0, -750.0, -1e30, -math.inf], dtype=dtype)
    low, high = clip_bounds(logprobs, epsilon, epsilon)
    assert low.dtype == high.dtype == dtype
    assert ((low >= 0.5) & (low <= 1)).all()
    assert ((high >= 1) & (high <= 10)).all()


def test_float32_agrees_with_float64() -> None:
    logprobs = -torch.logspace(-6, 1.8, 200, dtype=torch.float64)
    for coarse, fine in zip(clip_bounds(logprobs.float()), clip_bounds(logprobs), strict=True):
        assert torch.allclose(coarse.double(), fine, atol=1e-5)


def test_an_epsilon_of_zero_allows_no_move_even_for_impossible_tokens() -> None:
    low, high = clip_bounds(torch.tensor([0.0, -50.0, -math.inf]), 0.0, 0.0)
    assert low.tolist() == high.tolist() == [1.0, 1.0, 1.0]


def test_the_cap_is_what_was_set_even_below_ten() -> None:
    _, high = clip_bounds(torch.tensor([-20.0, -0.1]), max_ratio=1.1)
    assert high.tolist() == pytest.approx([1.1, 1.1])


def test_shape_is_kept_and_no_gradient_flows() -> None:
    logprobs = torch.full((2, 3), -1.0, requires_grad=True)
    low, high = clip_bounds(logprobs)
    assert low.shape == high.shape == (2, 3)
    assert not low.requires_grad
    assert not high.requires_grad


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("epsilon_low", -0.1),
        ("epsilon_low", math.nan),
        ("epsilon_high", math.inf),
        ("epsilon_high", -1e-9),
        ("max_ratio", 0.99),
        ("max_ratio", math.nan),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(setting: str, value: float) -> None:
    with pytest.raises(AlgorithmError, match=f"{setting} = {value}: set"):
        clip_bounds(torch.zeros(1), **{setting: value})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64])
def test_coarse_logprobs_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(AlgorithmError, match="float32 or float64"):
        clip_bounds(torch.zeros(1, dtype=dtype))
