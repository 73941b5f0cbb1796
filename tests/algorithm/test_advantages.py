"""smooth_advantages and fading_advantages against slow oracles in the paper's notation."""

import math
import statistics
from decimal import Decimal, localcontext

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dcpo_async.algorithm import RewardStats, fading_advantages, smooth_advantages
from dcpo_async.errors import AlgorithmError


def standardized(R: float, population: list[float], ddof: int) -> float:
    if len(set(population)) == 1:
        return 0.0
    sigma = statistics.stdev(population) if ddof else statistics.pstdev(population)
    return (R - statistics.fmean(population)) / sigma


def oracle(visits: list[list[float]], ddof: int) -> list[tuple[float, float]]:
    """(SA_new, SA_total) of each response of the last of the visits 1…i."""
    i = len(visits)
    everything = [R for group in visits for R in group]
    pairs = []
    for R in visits[-1]:
        A_new = standardized(R, visits[-1], ddof)
        A_total = standardized(R, everything, ddof)
        SA_new = (i - 1) / i * A_new + 1 / i * A_total
        SA_total = 1 / i * A_new + (i - 1) / i * A_total
        pairs.append((SA_new, SA_total))
    return pairs


def replay(visits: list[list[float]], ddof: int = 1) -> tuple[list[float], RewardStats]:
    advantages, stats = [], RewardStats()
    for group in visits:
        advantages, stats = smooth_advantages(group, stats, ddof)
    return advantages, stats


history = st.integers(2, 8).flatmap(
    lambda group_size: st.lists(
        st.lists(st.sampled_from([0.0, 1.0, -0.1]), min_size=group_size, max_size=group_size),
        min_size=1,
        max_size=6,
    )
)


@given(history, st.sampled_from([0, 1]))
def test_advantages_agree_with_the_equations(visits: list[list[float]], ddof: int) -> None:
    pairs = oracle(visits, ddof)
    # Where both are equally large the equation takes SA_total, but the oracle's rounding may not.
    assume(all(abs(abs(a) - abs(b)) > 1e-9 or abs(a - b) < 1e-9 for a, b in pairs))
    expected = [a if abs(a) < abs(b) else b for a, b in pairs]
    assert replay(visits, ddof)[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("visits", "expected"),
    [
        ([[1, 0, 0, 0]], [1.5, -0.5, -0.5, -0.5]),
        # A_total = (1 − 5/8) / √(15/56) = 0.72457, SA_new = SA_total = half of it.
        ([[1, 0, 0, 0], [1, 1, 1, 1]], [0.362284] * 4),
        # A_new = ±√3/2; mean 7/12, σ² = 35/132: A_total = 0.80917 or −1.13284. The smaller |A| weighs 2/3.
        ([[1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]], [0.828124, 0.828124, -0.954965, -0.954965]),
    ],
)
def test_worked_examples(visits: list[list[float]], expected: list[float]) -> None:
    assert replay(visits)[0] == pytest.approx(expected, abs=1e-6)


def test_sa_new_is_chosen_where_it_is_smaller_and_sa_total_where_it_is() -> None:
    visits = [[1.0, 0, 0, 0], [1.0, 1, 1, 1], [1.0, 1, 0, 0]]
    (new_of_1, total_of_1), _, (new_of_0, total_of_0), _ = oracle(visits, ddof=1)
    advantages, _ = replay(visits)
    assert abs(total_of_1) < abs(new_of_1)
    assert advantages[0] == pytest.approx(total_of_1, abs=1e-12)
    assert abs(new_of_0) < abs(total_of_0)
    assert advantages[2] == pytest.approx(new_of_0, abs=1e-12)


@given(st.lists(st.integers(0, 1), min_size=2, max_size=16), st.sampled_from([0, 1]))
def test_the_first_visit_equals_grpo(rewards: list[int], ddof: int) -> None:
    advantages, _ = smooth_advantages(rewards, RewardStats(), ddof)
    assert advantages == pytest.approx([standardized(R, rewards, ddof) for R in rewards], abs=1e-12)


@pytest.mark.parametrize("i", [2, 3, 5, 9])
def test_a_later_visit_with_identical_rewards_learns_a_total_over_i(i: int) -> None:
    visits = [[1.0, 0.0, 0.0, 0.0]] * (i - 1) + [[1.0] * 4]
    A_total = standardized(1.0, [R for group in visits for R in group], ddof=1)
    assert A_total > 0
    assert replay(visits)[0] == pytest.approx([A_total / i] * 4, rel=1e-12)


def test_equally_large_opposite_candidates_resolve_to_sa_total() -> None:
    # For reward 0.2, A_new = −1/√3 and A_total = +1/√3 exactly: rounding must not decide the sign.
    visits = [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.2, 0.2, 0.5]]
    assert replay(visits)[0][:2] == pytest.approx([1 / math.sqrt(27)] * 2, rel=1e-12)


def test_equally_large_opposite_candidates_of_rewards_that_are_rounded_resolve_to_either() -> None:
    # As above with ⅔: rounded to billionths, the sizes of the candidates differ by some 1e-10.
    visits = [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [2 / 3, 2 / 3, 5 / 3]]
    assert [abs(advantage) for advantage in replay(visits)[0][:2]] == pytest.approx([1 / math.sqrt(27)] * 2, abs=1e-8)


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, -0.3])
@pytest.mark.parametrize("i", [1, 2, 7])
def test_rewards_that_never_differed_give_exact_zeros(reward: float, i: int) -> None:
    assert replay([[reward] * 3] * i)[0] == [0.0, 0.0, 0.0]


def test_a_group_of_one_gives_zero_first_and_a_total_over_i_later() -> None:
    first, stats = smooth_advantages([1.0], RewardStats())
    second, stats = smooth_advantages([0.0], stats)
    third, _ = smooth_advantages([0.0], stats)
    assert first == [0.0]
    assert second == pytest.approx([-math.sqrt(0.5) / 2], abs=1e-12)
    assert third == pytest.approx([standardized(0.0, [1.0, 0.0, 0.0], ddof=1) / 3], abs=1e-12)


@given(history)
def test_statistics_after_the_visit_count_each_reward_once(visits: list[list[float]]) -> None:
    _, stats = replay(visits)
    nanos = [round(R * 1_000_000_000) for group in visits for R in group]
    assert stats == RewardStats(len(visits), len(nanos), sum(nanos), sum(m * m for m in nanos))


@given(history, st.randoms(use_true_random=False))
def test_the_order_of_earlier_visits_changes_no_bit(visits: list[list[float]], random) -> None:
    earlier = visits[:-1]
    random.shuffle(earlier)
    assert replay([*earlier, visits[-1]]) == replay(visits)


@pytest.mark.parametrize("rewards", [[], [1.0, math.nan], [math.inf, 0.0]])
def test_groups_without_rewards_or_with_non_finite_ones_are_refused(rewards: list[float]) -> None:
    with pytest.raises(AlgorithmError, match="reward"):
        smooth_advantages(rewards, RewardStats())


def test_another_ddof_is_refused() -> None:
    with pytest.raises(AlgorithmError, match="ddof 2: use 0"):
        smooth_advantages([1.0, 0.0], RewardStats(), ddof=2)


def test_advantages_are_the_same_to_the_last_bit_as_ever() -> None:
    stats, found = RewardStats(), []
    for group in ([1.0, 0.0, 0.0, 0.0], [1.0, 1.0], [0.5, -0.1, 1 / 3], [0.0, 1.0]):
        advantages, stats = smooth_advantages(group, stats)
        found.append([advantage.hex() for advantage in advantages])
    assert found == [
        ["0x1.8000000000000p+0", "-0x1.0000000000000p-1", "-0x1.0000000000000p-1", "-0x1.0000000000000p-1"],
        ["0x1.d363d1848dcbfp-2", "0x1.d363d1848dcbfp-2"],
        ["0x1.937b00744f6dcp-2", "-0x1.16fbf55432f2ap+0", "-0x1.29473ded36190p-6"],
        ["-0x1.81873bbb16025p-1", "0x1.a675249fa6554p-1"],
    ]


# ---- earlier visits that fade


def fading_oracle(visits: list[list[float]], h: float, ddof: int) -> list[tuple[float, float]]:
    """(SA_new, SA_total) of each response of the last visit, to 60 digits; rewards are whole billionths."""
    with localcontext() as context:
        context.prec = 60
        R = [[Decimal(round(1e9 * reward)) / 10**9 for reward in group] for group in visits]
        i = len(R)
        w = [Decimal(2) ** (-Decimal(i - k) / Decimal(h)) for k in range(1, i + 1)]
        W = sum(w)

        def score(reward: Decimal, groups: list[list[Decimal]], w: list[Decimal]) -> Decimal:
            n = sum(w_k * len(group) for w_k, group in zip(w, groups, strict=True))
            mu = sum(w_k * sum(group) for w_k, group in zip(w, groups, strict=True)) / n
            m2 = sum(w_k * sum((R_kj - mu) ** 2 for R_kj in group) for w_k, group in zip(w, groups, strict=True))
            is_constant = len({R_kj for group in groups for R_kj in group}) == 1
            return Decimal(0) if is_constant else (reward - mu) / (m2 / (n - ddof)).sqrt()

        pairs = []
        for reward in R[-1]:
            A_new, A_total = score(reward, R[-1:], w[-1:]), score(reward, R, w)
            SA_new = (W - 1) / W * A_new + 1 / W * A_total
            SA_total = 1 / W * A_new + (W - 1) / W * A_total
            pairs.append((float(SA_new), float(SA_total)))
        return pairs


any_history = st.lists(
    st.lists(st.sampled_from([0.0, 1.0, -0.1, 0.999999999]), min_size=2, max_size=6), min_size=1, max_size=8
)


@given(any_history, st.floats(0.05, 100.0), st.sampled_from([0, 1]))
def test_fading_advantages_agree_with_the_equations(visits: list[list[float]], h: float, ddof: int) -> None:
    pairs = fading_oracle(visits, h, ddof)
    assume(all(abs(abs(a) - abs(b)) > 1e-9 or abs(a - b) < 1e-9 for a, b in pairs))
    expected = [a if abs(a) < abs(b) else b for a, b in pairs]
    assert fading_advantages(visits, h, ddof) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("visits", "h", "expected"),
    [
        ([[1, 0, 0, 0]], 1.0, [1.5, -0.5, -0.5, -0.5]),
        # w = ½, 1; n = 6, μ = 4.5/6, m2 = 4.5 − 6·0.5625; A_total = 0.25/√(1.125/5) = 0.527046; W = 1.5 leaves ⅓.
        ([[1, 0, 0, 0], [1, 1, 1, 1]], 1.0, [0.175682] * 4),
        # w = ¼, ½, 1; n = 3.5, μ = 1/3.5, m2 = 1 − 3.5·μ² = 0.714286; A_total = −0.534522; W = 1.75 leaves 3/7.
        ([[0, 0], [1, 1], [0, 0]], 1.0, [-0.229081] * 2),
    ],
)
def test_worked_examples_with_a_half_life(visits: list[list[float]], h: float, expected: list[float]) -> None:
    assert fading_advantages(visits, h) == pytest.approx(expected, abs=1e-6)


@given(any_history, st.sampled_from([0, 1]))
def test_a_half_life_without_end_is_smooth_standardization(visits: list[list[float]], ddof: int) -> None:
    assert fading_advantages(visits, math.inf, ddof) == replay(visits, ddof)[0]
    # One part in 10¹⁵ could still turn the choice between two candidates of one size.
    assume(all(abs(abs(a) - abs(b)) > 1e-9 or abs(a - b) < 1e-12 for a, b in oracle(visits, ddof)))
    assert fading_advantages(visits, 1e15, ddof) == pytest.approx(replay(visits, ddof)[0], abs=1e-12)


@given(any_history, st.sampled_from([0, 1]))
def test_a_tiny_half_life_judges_the_group_by_its_own_rewards(visits: list[list[float]], ddof: int) -> None:
    assert fading_advantages(visits, 1e-9, ddof) == replay(visits[-1:], ddof)[0]


def test_the_newest_visit_keeps_its_share_however_many_came_before() -> None:
    visits = [[1.0, 0.0, 0.0, 0.0]] * 200 + [[1.0, 1.0, 1.0, 1.0]]
    # W = 1 / (1 − 2^(−1/4)); the group weighs 1/W in the mean: μ = 0.25 + 0.75/W, σ² = μ(1 − μ)·4W/(4W − 1).
    W = 6.285213
    mu = 0.25 + 0.75 / W
    A_total = (1 - mu) / math.sqrt(mu * (1 - mu) * 4 * W / (4 * W - 1))
    assert fading_advantages(visits, 4.0)[0] == pytest.approx(A_total / W, abs=1e-6)
    assert replay(visits)[0][0] < 0.01 < 0.2 < A_total / W


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, -0.3])
@pytest.mark.parametrize("h", [0.3, 5.0, 1e6])
def test_fading_rewards_that_never_differed_give_exact_zeros(reward: float, h: float) -> None:
    assert fading_advantages([[reward] * 3] * 7, h) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("groups", "h", "complaint"),
    [
        ([], 1.0, "0 groups"),
        ([[1.0]], 0.0, r"half_life_visits 0\.0"),
        ([[1.0]], -2.0, r"half_life_visits -2\.0"),
        ([[1.0]], math.nan, "half_life_visits nan"),
        ([[1.0], []], 1.0, "without rewards"),
        ([[math.nan], [1.0]], 1.0, "not finite"),
    ],
)
def test_what_cannot_fade_is_refused(groups: list[list[float]], h: float, complaint: str) -> None:
    with pytest.raises(AlgorithmError, match=complaint):
        fading_advantages(groups, h)
