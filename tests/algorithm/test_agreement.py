"""Our functions against the equations, on random input: every largest difference, which `pytest -s` prints as a table.

The oracles are written from the papers and import nothing of ours: float64 for advantages, 40 digits for the rest.
"""

import math
import random
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
import torch
from mpmath import mp, mpf
from numpy.typing import NDArray
from torch import Tensor

from dcpo_async.algorithm import (
    PolicyLoss,
    RewardStats,
    clip_bounds,
    clipped_loss,
    fading_advantages,
    fixed_bounds,
    group_advantages,
    masked_weights,
    only_token_mean_weights,
    policy_loss,
    smooth_advantages,
    truncated_weights,
)

TOLERANCE = 1e-6
FLOAT32_TOLERANCE, FLOAT32_EDGE_TOLERANCE = 2e-6, 3e-4
R_MAX = 10.0
EPSILONS = [(0.16, 0.20), (0.2, 0.28), (3e-4, 4e-4), (0.5, 1.0)]
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


@pytest.fixture(autouse=True)
def forty_digits() -> Iterator[None]:
    with mp.workdps(40):
        yield


def row(quantity: str, cases: int, difference: float) -> None:
    print(f"| {quantity} | {cases} | {difference:.1e} |")


# ---- advantages

Kind = Callable[[random.Random, int], list[float]]
KINDS: dict[str, Kind] = {
    "binary": lambda dice, G: [float(dice.random() < 0.3) for _ in range(G)],
    "uniform(0, 1)": lambda dice, G: [dice.random() for _ in range(G)],
    "uniform(-1, 1)": lambda dice, G: [dice.uniform(-1, 1) for _ in range(G)],
    "thirds": lambda dice, G: [dice.randint(-3, 3) / 3 for _ in range(G)],
    "gauss(0, 1)": lambda dice, G: [dice.gauss(0, 1) for _ in range(G)],
    "equal within a visit": lambda dice, G: [dice.choice([0.0, 1.0, -0.1])] * G,
    "nearly identical": lambda dice, G: [dice.choice([0.7, 0.70000001]) for _ in range(G)],
    "identical": lambda dice, G: [0.3] * G,
}


def histories(kind: str, sizes: range | list[int]) -> Iterator[tuple[list[list[float]], int]]:
    """Visits 1…i for i from 1 to 20, for each G, with a ddof."""
    dice = random.Random(kind)
    for G in sizes:
        visits = [KINDS[kind](dice, G) for _ in range(20)]
        yield from ((visits[:i], (G + i) % 2) for i in range(1, 21))


def score(R: NDArray[np.float64], everything: NDArray[np.float64], ddof: int) -> NDArray[np.float64]:
    if np.ptp(everything) == 0:
        return np.zeros_like(R)
    return (R - everything.mean()) / everything.std(ddof=ddof)


def smoothed(A_new: NDArray[np.float64], A_total: NDArray[np.float64], i: float) -> NDArray[np.float64]:
    SA_new = (i - 1) / i * A_new + 1 / i * A_total
    SA_total = 1 / i * A_new + (i - 1) / i * A_total
    # Where both are equally large the equation takes SA_total, and rounding must not decide.
    return np.where(np.abs(SA_new) < np.abs(SA_total) - 1e-9, SA_new, SA_total)


@pytest.mark.parametrize("kind", KINDS)
def test_advantages_over_visits_1_to_20_and_groups_of_2_to_64(kind: str) -> None:
    differences, group_differences, stats = [], [], RewardStats()
    for visits, ddof in histories(kind, range(2, 65)):
        R = np.array(visits)
        stats = stats if len(visits) > 1 else RewardStats()
        A_new = score(R[-1], R[-1], ddof)
        group, _ = group_advantages(visits[-1], stats, ddof)
        group_differences.append(np.abs(A_new - group).max())
        found, stats = smooth_advantages(visits[-1], stats, ddof)
        differences.append(np.abs(smoothed(A_new, score(R[-1], R, ddof), len(R)) - found).max())
    row(f"smooth_advantages, {kind}", len(differences), max(differences))
    row(f"group_advantages, {kind}", len(differences), max(group_differences))
    assert max(differences + group_differences) < TOLERANCE
    assert kind != "identical" or max(differences + group_differences) == 0


@pytest.mark.parametrize("spread", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8])
def test_rewards_close_together_differ_by_what_rounding_to_billionths_moves(spread: float) -> None:
    dice, differences, shares = random.Random(spread), [], []
    for G in range(2, 65):
        R = np.array([dice.random() + 0.5] * G) + [dice.uniform(0, spread) for _ in range(G)]
        A = score(R, R, ddof=1)
        difference = np.abs(A - group_advantages(R.tolist(), RewardStats())[0])
        # Half a billionth moves R − μ by up to a whole one, and σ by up to 0.71 of one.
        bound = (1 + np.abs(A)) * 1e-9 / R.std(ddof=1)
        differences.append(difference.max())
        shares.append((difference / bound).max())
    row(f"group_advantages, rewards within {spread:.0e}", len(differences), max(differences))
    assert max(shares) < 1


@pytest.mark.parametrize("kind", KINDS)
def test_fading_advantages_over_visits_1_to_20_and_half_lives_of_a_tenth_to_1000(kind: str) -> None:
    dice, differences = random.Random(kind), []
    for visits, ddof in histories(kind, [2, 3, 8, 16, 64]):
        h, R = 10 ** dice.uniform(-1, 3), np.array(visits)
        i, G = R.shape
        w = 2.0 ** -((i - np.arange(1, i + 1)) / h)
        n = w.sum() * G
        mu = (w @ R).sum() / n
        sigma = math.sqrt((w @ (R - mu) ** 2).sum() / (n - ddof))
        A_total = np.zeros(G) if np.ptp(R) == 0 else (R[-1] - mu) / sigma
        expected = smoothed(score(R[-1], R[-1], ddof), A_total, w.sum())
        differences.append(np.abs(expected - fading_advantages(visits, h, ddof)).max())
    row(f"fading_advantages, {kind}", len(differences), max(differences))
    assert max(differences) < TOLERANCE


# ---- clip bounds


def old_logprobs(count: int, dtype: torch.dtype) -> Tensor:
    """Of probabilities from 1e-30 to 1: log-uniform, uniform, and 1 itself."""
    dice = random.Random(count)
    rare = [dice.uniform(math.log(1e-30), 0) for _ in range(count // 2)]
    likely = [math.log(1 - dice.random()) for _ in range(count - count // 2 - 1)]
    return torch.tensor([*rare, *likely, 0.0], dtype=dtype)


def bounds_of(logprob: mpf | float, eps_low: float, eps_high: float) -> tuple[mpf, mpf]:
    q = mp.exp(logprob)
    low = mpf(1) / 2 + mp.sqrt(max(1 - 4 * mpf(eps_low) / q, mpf(0))) / 2
    high = mpf(1) / 2 + mp.sqrt(1 + 4 * mpf(eps_high) / q) / 2
    return low, min(high, mpf(R_MAX))


def fixed_bounds_of(eps_low: float, eps_high: float) -> tuple[mpf, mpf]:
    return 1 - mpf(eps_low), min(1 + mpf(eps_high), mpf(R_MAX))


def relative(found: float, expected: mpf, scale: mpf | None = None) -> float:
    return float(abs(found - expected) / (abs(expected) if scale is None else scale))


@DTYPES
def test_clip_bounds_of_probabilities_from_1e_30_to_1(dtype: torch.dtype) -> None:
    elsewhere, near_the_edge, fixed = [], [], []
    for eps_low, eps_high in EPSILONS:
        # At q = 4·ε_low the slope of low is infinite: it turns rounding of x into √x.
        edge = min(math.log(4 * eps_low), 0.0)
        edges = torch.tensor([edge * (1 + d) for d in (0, 1e-9, -1e-9, 1e-5, -1e-5)], dtype=dtype)
        for logprobs, differences in ((old_logprobs(300, dtype), elsewhere), (edges, near_the_edge)):
            found = zip(*(bound.tolist() for bound in clip_bounds(logprobs, eps_low, eps_high, R_MAX)), strict=True)
            expected = (bounds_of(logprob, eps_low, eps_high) for logprob in logprobs.tolist())
            differences += map(max_relative, found, expected)
            found = zip(*(bound.tolist() for bound in fixed_bounds(logprobs, eps_low, eps_high, R_MAX)), strict=True)
            fixed += [max_relative(pair, fixed_bounds_of(eps_low, eps_high)) for pair in found]
    row(f"clip_bounds, {dtype}", len(elsewhere), max(elsewhere))
    row(f"clip_bounds where 4·ε_low/q is 1, {dtype}", len(near_the_edge), max(near_the_edge))
    row(f"fixed_bounds, {dtype}", len(fixed), max(fixed))
    is_double = dtype == torch.float64
    assert max(fixed + elsewhere) < (TOLERANCE if is_double else FLOAT32_TOLERANCE)
    assert max(near_the_edge) < (TOLERANCE if is_double else FLOAT32_EDGE_TOLERANCE)


def max_relative(found: tuple[float, ...], expected: tuple[mpf, ...]) -> float:
    return max(map(relative, found, expected))


# ---- loss and gradient


class Batch:
    """Tokens of responses of random lengths, at ratios on both sides of every bound.

    Args:
        dtype: of all tensors; the oracle takes their values as they are.
        of_sequences: whether the responses' mean ratios lie around fixed bounds, or each token's around its own.
    """

    def __init__(self, seed: int, dtype: torch.dtype, of_sequences: bool = False) -> None:
        dice = self.dice = random.Random(seed)
        self.epsilons = EPSILONS[seed % len(EPSILONS)]
        self.lengths = [dice.randint(1, 15) for _ in range(40)]
        self.rows = [i for i, length in enumerate(self.lengths) for _ in range(length)]
        A = [dice.choice([1.5, -0.5, 0.0, dice.gauss(0, 1)]) for _ in self.lengths]
        weights = only_token_mean_weights(self.lengths, group_size=4, num_groups=10)
        self.advantages, self.weights = (
            torch.tensor([values[i] for i in self.rows], dtype=dtype) for values in (A, weights)
        )
        self.old = old_logprobs(len(self.rows), dtype)
        self.near = 1e-7 if dtype == torch.float64 else 1e-3
        log_ratios = [self.log_ratio(bounds_of(logprob, *self.epsilons)) for logprob in self.old.tolist()]
        if of_sequences:
            log_ratios = [x for length in self.lengths for x in self.log_ratios_of_sequence(length)]
        self.policy = (self.old + torch.tensor(log_ratios, dtype=dtype)).requires_grad_()

    def log_ratio(self, bounds: tuple[mpf, mpf]) -> float:
        """Beside a bound, so near that rounding just leaves it on its side, or anywhere."""
        dice, near = self.dice, self.near
        bound = float(dice.choice([*bounds, mpf(R_MAX)]))
        return dice.choice([math.log(bound) + dice.choice([-1, 1]) * near, dice.gauss(0, 1.5), 0.0])

    def log_ratios_of_sequence(self, length: int) -> list[float]:
        noise = [self.dice.gauss(0, 1) for _ in range(length)]
        shift = self.log_ratio(fixed_bounds_of(*self.epsilons)) - sum(noise) / length
        return [x + shift for x in noise]

    def tokens(self) -> Iterator[tuple[mpf, mpf, mpf, mpf]]:
        """A, weight, old and policy log-prob of each token."""
        columns = (self.advantages, self.weights, self.old, self.policy.detach())
        yield from zip(*(map(mpf, column.tolist()) for column in columns), strict=True)


def token_loss(A: mpf, r: mpf, bounds: tuple[mpf, mpf]) -> tuple[mpf, mpf]:
    """The loss of a token, and its derivative by log r."""
    low, high = bounds
    unclipped, clipped = -A * r, -A * max(low, min(r, high))
    if A < 0 and max(unclipped, clipped) > -A * R_MAX:
        return -A * R_MAX, mpf(0)
    return (unclipped, unclipped) if unclipped >= clipped else (clipped, mpf(0))


class Differences:
    """The largest ones of loss and gradient over some batches.

    That of a loss is relative to the sum of what its tokens cost, that of a gradient to its size without clip.
    """

    def __init__(self) -> None:
        self.loss = self.gradient = 0.0
        self.num_tokens, self.flags = 0, [False, False, False]

    def add(self, out: PolicyLoss, batch: Batch, expected: list[tuple[mpf, mpf, mpf]]) -> None:
        """A batch, with loss, gradient and size of the gradient without clip for each token."""
        (found,) = torch.autograd.grad(out.loss, batch.policy)
        costs = [loss for loss, _, _ in expected]
        self.loss = max(self.loss, relative(out.loss.item(), mp.fsum(costs), mp.fsum(costs, absolute=True)))
        for by_token, (_, gradient, size) in zip(found.tolist(), expected, strict=True):
            assert (by_token == 0) == (gradient == 0)
            self.gradient = max(self.gradient, relative(by_token, gradient, size) if size else 0.0)
        flags = (out.clipped_high, out.clipped_low, out.dual_clipped)
        self.flags = [seen or bool(flag.any()) for seen, flag in zip(self.flags, flags, strict=True)]
        self.num_tokens += len(expected)

    def check(self, quantity: str, dtype: torch.dtype) -> None:
        row(f"{quantity}, {dtype}: loss", self.num_tokens, self.loss)
        row(f"{quantity}, {dtype}: gradient", self.num_tokens, self.gradient)
        assert self.flags == [True, True, True]
        assert max(self.loss, self.gradient) < (TOLERANCE if dtype == torch.float64 else FLOAT32_TOLERANCE)


CORRECTIONS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor] | None, Callable[[mpf], mpf]]] = {
    "none": (None, lambda w: mpf(1)),
    "truncated": (truncated_weights, lambda w: min(w, mpf(2))),
    "masked": (masked_weights, lambda w: w if 0.5 <= w <= 5 else mpf(0)),
}


@DTYPES
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_policy_loss_and_its_gradient(correction: str, dtype: torch.dtype) -> None:
    differences, (weights_of, oracle_weight) = Differences(), CORRECTIONS[correction]
    for seed in range(4):
        batch = Batch(seed, dtype)
        behavior = batch.old + torch.tensor([batch.dice.gauss(0, 1) for _ in batch.rows], dtype=dtype)
        out = policy_loss(
            batch.policy,
            batch.old,
            batch.advantages,
            batch.weights,
            epsilon_low=batch.epsilons[0],
            epsilon_high=batch.epsilons[1],
            max_ratio=R_MAX,
            importance_weights=weights_of(batch.old, behavior) if weights_of else None,
        )
        expected = []
        for (A, weight, old, policy), sampled in zip(batch.tokens(), behavior.tolist(), strict=True):
            weight *= oracle_weight(mp.exp(old - sampled))
            r = mp.exp(policy - old)
            loss, gradient = token_loss(A, r, bounds_of(old, *batch.epsilons))
            expected.append((weight * loss, weight * gradient, abs(weight * A * r)))
        differences.add(out, batch, expected)
    differences.check(f"policy_loss, correction {correction}", dtype)


@DTYPES
def test_loss_and_gradient_of_ratios_of_sequences(dtype: torch.dtype) -> None:
    differences = Differences()
    for seed in range(4):
        batch = Batch(seed, dtype, of_sequences=True)
        out = clipped_loss(
            batch.policy,
            batch.old,
            batch.advantages,
            batch.weights,
            bounds=partial(fixed_bounds, epsilon_low=batch.epsilons[0], epsilon_high=batch.epsilons[1]),
            max_ratio=R_MAX,
            sequences=torch.tensor(batch.rows),
        )
        tokens, expected = batch.tokens(), []
        for length in batch.lengths:
            mine = [next(tokens) for _ in range(length)]
            A, weight, _, _ = mine[0]
            s = mp.exp(mp.fsum(policy - old for _, _, old, policy in mine) / length)
            loss, gradient = token_loss(A, s, fixed_bounds_of(*batch.epsilons))
            # Each token has 1/|o| of the derivative of all |o| token losses by log s.
            expected += [(weight * loss, weight * gradient, abs(weight * A * s))] * length
        differences.add(out, batch, expected)
    differences.check("clipped_loss of sequences", dtype)


def test_only_token_mean_weights() -> None:
    dice = random.Random(0)
    lengths = [dice.randint(0, 20_000) for _ in range(2_000)]
    differences = []
    for scale, shares in (("mean", 16 * 125), ("sum", 125)):
        found = only_token_mean_weights(lengths, group_size=16, num_groups=125, scale=scale)
        differences += [relative(w, 1 / (mpf(o) * shares)) for w, o in zip(found, lengths, strict=True) if o]
    row("only_token_mean_weights", len(differences), max(differences))
    assert max(differences) < TOLERANCE
