"""TokenDiagnostics and rur against numbers worked by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dcpo_async.algorithm import TokenDiagnostics, policy_loss, rur
from dcpo_async.errors import AlgorithmError


def diagnose(
    ratios: list[float],
    advantages: list[float],
    old_probability: float = 0.9,
    behavior_ratios: list[float] | None = None,
    entropy: list[float] | None = None,
    lag: list[int] | None = None,
) -> TokenDiagnostics:
    """Tokens of one old probability; behavior_ratios are current/behavior, by default the ratios."""
    tokens = len(ratios)
    old = torch.full((tokens,), math.log(old_probability), dtype=torch.float64)
    policy = old + torch.tensor(ratios, dtype=torch.float64).log()
    behavior = policy - torch.tensor(behavior_ratios or ratios, dtype=torch.float64).log()
    advantage = torch.tensor(advantages, dtype=torch.float64)
    out = policy_loss(policy, old, advantage, torch.ones(tokens), epsilon_low=0.16, epsilon_high=0.2, max_ratio=10.0)
    return TokenDiagnostics.of_tokens(
        policy,
        old,
        behavior,
        advantage,
        out,
        torch.tensor(entropy or [0.0] * tokens),
        torch.tensor(lag or [0] * tokens),
    )


def test_clip_rates_by_hand() -> None:
    # In order: clipped high, inside, clipped low, dual clipped, no advantage, inside.
    summary = diagnose([1.2, 1.1, 0.7, 11.0, 5.0, 1.0], [1, 1, -1, -1, 0, -1]).summary()
    assert summary["num_tokens"] == 6
    assert summary["tcr"] == pytest.approx(2 / 6)
    assert summary["tcr_nonzero"] == pytest.approx(2 / 5)
    assert summary["dual_clip_rate"] == pytest.approx(1 / 6)


def test_the_mean_over_micro_batches_differs_from_the_share_of_all_tokens() -> None:
    one_of_two = diagnose([1.2, 1.0], [1, 1])
    none_of_three = diagnose([1.0, 1.0, 1.0], [1, 1, 1])
    summary = (one_of_two + none_of_three + diagnose([], [])).summary()
    assert summary["tcr"] == pytest.approx(1 / 5)
    assert summary["tcr_micro_batch_mean"] == pytest.approx(1 / 4)


def test_off_policy_metrics_by_hand() -> None:
    summary = diagnose([1.0, 1.0, 1.0], [1, 1, 1], behavior_ratios=[0.5, 1.0, 2.0]).summary()
    k3 = [0.5 - 1 - math.log(0.5), 0.0, 2 - 1 - math.log(2)]
    assert summary["kl_behavior"] == pytest.approx(sum(k3) / 3)
    assert summary["ess_fraction"] == pytest.approx(3.5**2 / (3 * 5.25))
    assert summary["ratio_mean"] == 1.0


def test_k3_estimates_the_divergence_from_behavior_to_policy() -> None:
    behavior, policy = [0.5, 0.3, 0.2], [0.4, 0.4, 0.2]
    kl = sum(b * math.log(b / p) for b, p in zip(behavior, policy, strict=True))
    # Ten tokens in the proportions of the behavior policy make the expectation exact.
    ratios = [0.4 / 0.5] * 5 + [0.4 / 0.3] * 3 + [1.0] * 2
    assert diagnose(ratios, [0.0] * 10, old_probability=0.1).summary()["kl_behavior"] == pytest.approx(kl)


def test_one_token_that_outweighs_all_leaves_a_sample_of_one() -> None:
    summary = diagnose([1.0] * 4, [1] * 4, behavior_ratios=[1e8, 1e-8, 1e-8, 1e-8]).summary()
    assert summary["ess_fraction"] == pytest.approx(1 / 4)


def test_entropy_and_lag_are_means_over_tokens() -> None:
    summary = diagnose([1.0, 1.0, 1.0], [0, 0, 0], entropy=[0.5, 1.0, 3.0], lag=[0, 1, 4]).summary()
    assert summary["entropy"] == pytest.approx(1.5)
    assert summary["lag"] == pytest.approx(5 / 3)


Token = tuple[int, float, float, float]


def lag_oracle(tokens: list[Token]) -> dict[str, float]:
    """Metrics per lag of (lag, ratio, current/behavior, advantage), whose old probability is 0.9: 0.7687 to 1.1872."""
    metrics = {}
    for K in range(17):
        mine = [token for token in tokens if token[0] == K or (K == 16 and token[0] > 16)]
        if not mine:
            continue
        name = "lag_16_up" if K == 16 else f"lag_{K}"
        n, W = len(mine), [w for _, _, w, _ in mine]
        metrics[f"{name}/tokens_share"] = n / len(tokens)
        metrics[f"{name}/ratio_mean"] = sum(r for _, r, _, _ in mine) / n
        metrics[f"{name}/tcr"] = sum((A > 0 and r > 1.1872) or (A < 0 and r < 0.7687) for _, r, _, A in mine) / n
        metrics[f"{name}/ess_fraction"] = sum(W) ** 2 / (n * sum(w**2 for w in W))
        metrics[f"{name}/kl_behavior"] = sum(w - 1 - math.log(w) for w in W) / n
    return metrics


def of_lags(summary: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in summary.items() if name.startswith("lag_")}


def diagnose_tokens(tokens: list[Token]) -> TokenDiagnostics:
    lags, ratios, weights, advantages = map(list, zip(*tokens, strict=True))
    return diagnose(ratios, advantages, behavior_ratios=weights, lag=lags)


tokens_of_any_lag = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 2, 7, 15, 16, 17, 4000]),
        st.floats(0.05, 20.0).filter(lambda r: min(abs(r - 0.7687), abs(r - 1.1872)) > 1e-3),
        st.floats(0.05, 20.0),
        st.sampled_from([-1.0, 0.0, 1.0]),
    ),
    min_size=1,
    max_size=40,
)


@given(tokens_of_any_lag)
def test_metrics_of_each_lag_agree_with_a_loop_over_its_tokens(tokens: list[Token]) -> None:
    assert of_lags(diagnose_tokens(tokens).summary()) == pytest.approx(lag_oracle(tokens), rel=1e-9, abs=1e-12)


@given(tokens_of_any_lag, st.integers(0, 40))
def test_metrics_of_each_lag_are_the_same_from_pieces(tokens: list[Token], cut: int) -> None:
    pieces = [piece for piece in (tokens[:cut], tokens[cut:]) if piece]
    merged = sum(map(diagnose_tokens, pieces), TokenDiagnostics.zeros())
    assert of_lags(merged.summary()) == pytest.approx(of_lags(diagnose_tokens(tokens).summary()), rel=1e-12)


def test_metrics_of_each_lag_by_hand() -> None:
    tokens = [(0, 1.0, 1.0, 1.0), (0, 1.0, 1.0, -1.0), (3, 1.2, 0.5, 1.0), (16, 0.7, 2.0, -1.0), (99, 0.7, 1.0, 1.0)]
    k3 = {w: w - 1 - math.log(w) for w in (0.5, 2.0)}
    assert of_lags(diagnose_tokens(tokens).summary()) == pytest.approx(
        {
            "lag_0/tokens_share": 0.4,
            "lag_0/tcr": 0.0,
            "lag_0/ratio_mean": 1.0,
            "lag_0/ess_fraction": 1.0,
            "lag_0/kl_behavior": 0.0,
            "lag_3/tokens_share": 0.2,
            "lag_3/tcr": 1.0,
            "lag_3/ratio_mean": 1.2,
            "lag_3/ess_fraction": 1.0,
            "lag_3/kl_behavior": k3[0.5],
            "lag_16_up/tokens_share": 0.4,
            "lag_16_up/tcr": 0.5,
            "lag_16_up/ratio_mean": 0.7,
            "lag_16_up/ess_fraction": 9 / 10,
            "lag_16_up/kl_behavior": k3[2.0] / 2,
        },
        abs=1e-12,
    )


def test_a_lag_of_no_finite_token_has_means_of_zero() -> None:
    out = policy_loss(*torch.zeros(4, 1), epsilon_low=0.16, epsilon_high=0.2, max_ratio=10.0)
    behavior = torch.tensor([math.nan])
    lag = torch.tensor([2])
    summary = TokenDiagnostics.of_tokens(
        *torch.zeros(2, 1), behavior, torch.zeros(1), out, torch.zeros(1), lag
    ).summary()
    assert of_lags(summary) == {
        "lag_2/tokens_share": 1.0,
        "lag_2/tcr": 0.0,
        "lag_2/ratio_mean": 0.0,
        "lag_2/ess_fraction": 0.0,
        "lag_2/kl_behavior": 0.0,
    }


def test_unchanged_tokens_have_quantiles_of_exactly_one() -> None:
    summary = diagnose([1.0] * 7, [1] * 7).summary()
    assert [summary[name] for name in ("ratio_p01", "ratio_p50", "ratio_p99", "ratio_max")] == [1.0] * 4


@given(st.lists(st.floats(-19.0, 19.0), min_size=1, max_size=300))
def test_quantiles_are_within_a_quarter_percent_of_the_sorted_ratios(log_ratios: list[float]) -> None:
    ratios = sorted(math.exp(value) for value in log_ratios)
    summary = diagnose(ratios, [0.0] * len(ratios), old_probability=1e-9).summary()
    for name, share in (("ratio_p01", 0.01), ("ratio_p50", 0.5), ("ratio_p99", 0.99), ("ratio_max", 1.0)):
        nearest_rank = ratios[math.ceil(share * len(ratios)) - 1]
        assert summary[name] == pytest.approx(nearest_rank, rel=0.00251)


@pytest.mark.parametrize("place", ["policy", "old", "behavior", "entropy"])
@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_non_finite_token_is_counted_and_left_out_of_the_means(place: str, bad: float) -> None:
    rows = {name: torch.full((3,), -1.0) for name in ("policy", "old", "behavior", "entropy")}
    rows["policy"] -= math.log(2)
    rows["behavior"] -= math.log(2)
    rows[place][1] = bad
    advantages = torch.ones(3)
    out = policy_loss(
        rows["policy"],
        rows["old"],
        advantages,
        torch.ones(3),
        epsilon_low=0.16,
        epsilon_high=0.2,
        max_ratio=10.0,
    )
    summary = TokenDiagnostics.of_tokens(
        rows["policy"],
        rows["old"],
        rows["behavior"],
        advantages,
        out,
        rows["entropy"],
        torch.tensor([2, 9, 4]),
    ).summary()
    assert (summary["num_tokens"], summary["nonfinite_tokens"]) == (3, 1)
    assert (summary["entropy"], summary["lag"]) == (-1.0, 3.0)
    assert summary["ratio_mean"] == pytest.approx(0.5)
    assert summary["ratio_p99"] == summary["ratio_max"] == pytest.approx(0.5, rel=0.0025)
    assert (summary["ess_fraction"], summary["kl_behavior"]) == (1.0, 0.0)


def test_log_ratios_beyond_twenty_are_held_there() -> None:
    summary = diagnose([math.exp(15), 1.0], [0, 0], 1e-30, behavior_ratios=[math.exp(40), 1.0]).summary()
    assert summary["kl_behavior"] == pytest.approx((math.expm1(20) - 20) / 2)
    assert summary["ratio_max"] == pytest.approx(math.exp(15), rel=0.0025)


def test_no_tokens_give_zeros() -> None:
    assert set(TokenDiagnostics.zeros().summary().values()) == {0.0}


def test_the_summary_holds_plain_floats() -> None:
    assert {type(value) for value in diagnose([1.1], [1]).summary().values()} == {float}


def test_sums_of_another_build_are_refused() -> None:
    with pytest.raises(AlgorithmError, match=r"sums of shape \(5,\)"):
        TokenDiagnostics(torch.zeros(5, dtype=torch.float64))
    with pytest.raises(AlgorithmError, match="float32"):
        TokenDiagnostics(TokenDiagnostics.zeros().sums.float())


def test_tokens_of_different_lengths_are_refused() -> None:
    rows = torch.zeros(3)
    out = policy_loss(rows, rows, rows, rows, epsilon_low=0.16, epsilon_high=0.2, max_ratio=10.0)
    with pytest.raises(AlgorithmError, match="flat"):
        TokenDiagnostics.of_tokens(rows, rows, rows, rows, out, rows, torch.zeros(1))


@pytest.mark.parametrize(
    ("advantages", "share"),
    [([1.5, -0.5, 0.0, 0.0], 0.5), ([0.0, -0.0], 0.0), ([1e-12], 1.0)],
)
def test_rur_is_the_share_of_responses_that_learn(advantages: list[float], share: float) -> None:
    assert rur(advantages) == share


def test_rur_of_no_responses_is_refused() -> None:
    with pytest.raises(AlgorithmError, match="no responses"):
        rur([])
