"""Ranks that share the tokens of a row: loss, scores and gradient are those of one rank."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcpo_async.records import TrainingSample
from learner.policy.packing import MicroBatch, pack
from learner.policy.sequence_parallel import part_of, within
from tests.learner.policy.test_layout_free_gradient import share
from tests.learner.ranks import run_ranks
from tests.tiny_families import FAMILIES, make_family
from tests.tiny_model import make_tiny_model

LENGTHS = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 30)), max_size=6)


def ragged(lengths: list[tuple[int, int]]) -> MicroBatch:
    """A row of sequences with prompts and responses of these lengths."""
    generator = np.random.default_rng(len(lengths))
    samples = [
        TrainingSample(
            position=0,
            index=index,
            prompt_token_ids=generator.integers(0, 64, prompt, dtype=np.int32),
            token_ids=generator.integers(0, 64, length, dtype=np.int32),
            behavior_logprobs=generator.normal(-2, 0.5, length).astype(np.float32),
            old_logprobs=np.zeros(length, dtype=np.float32),
            token_lags=np.zeros(length, dtype=np.int32),
            advantage=float(generator.normal()),
            token_weight=1 / max(1, length),
        )
        for index, (prompt, length) in enumerate(lengths)
    ]
    return pack(samples)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 7))
def test_parts_are_the_row_cut_into_pieces_of_one_size(lengths: list[tuple[int, int]], num_ranks: int) -> None:
    row = ragged(lengths)
    parts = [part_of(row, rank, num_ranks) for rank in range(num_ranks)]
    length = row.input_ids.shape[1]
    assert len({part.input_ids.shape for part in parts}) == 1
    for name in ("input_ids", "position_ids"):
        joined = torch.cat([getattr(part, name) for part in parts], 1)
        assert torch.equal(joined[:, :length], getattr(row, name))
        # No more than one token for each rank, which no other sequence sees.
        assert joined.shape[1] - length < num_ranks
    (bounds,) = {tuple(part.bounds.tolist()) for part in parts}
    assert bounds[: len(row.bounds)] == tuple(row.bounds.tolist())
    assert bounds[-1] == num_ranks * parts[0].input_ids.shape[1]
    assert {part.longest for part in parts} == {int(np.diff(bounds).max())}


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 7), st.integers(1, 5))
def test_tokens_split_over_parts_and_chunks_have_the_loss_and_slopes_of_the_row(
    lengths: list[tuple[int, int]], num_ranks: int, chunk_size: int
) -> None:
    row = ragged(lengths)
    # What the model would say of the token that follows each place: a function of both, so that a shift would show.
    states = torch.linspace(-3, -1, row.input_ids.shape[1])

    def logprobs_of(places: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        return states[places] - token_ids / 100

    whole = logprobs_of(row.states, row.token_ids).requires_grad_()
    expected = share(row, whole, slice(0, len(whole)))
    expected.backward()
    total, slopes = 0.0, []
    for rank in range(num_ranks):
        part = part_of(row, rank, num_ranks)
        size = part.input_ids.shape[1]
        logprobs = logprobs_of(part.states + rank * size, row.token_ids[part.tokens])
        for start in range(0, len(logprobs), chunk_size):
            chunk = slice(start, min(start + chunk_size, len(logprobs)))
            leaf = logprobs[chunk].requires_grad_()
            found = share(row, leaf, within(part.tokens, chunk))
            found.backward()
            total += found.item()
            assert leaf.grad is not None
            slopes.append(leaf.grad)
    assert total == pytest.approx(expected.item(), abs=1e-5)
    assert whole.grad is not None
    assert torch.equal(torch.cat([torch.empty(0), *slopes]), whole.grad)


def small_families(folder: Path) -> None:
    for family in sorted(FAMILIES.keys() - {"gemma2"}):
        make_family(folder / family, family)


def six_heads(folder: Path) -> None:
    """As many keys as cannot be dealt out to three ranks."""
    make_tiny_model(folder / "llama", seed=0, hidden_size=96, num_attention_heads=6, num_key_value_heads=2)


@pytest.mark.system
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("make", "num_ranks"),
    [
        pytest.param(small_families, 2, id="families on 2 ranks", marks=pytest.mark.thorough),
        pytest.param(six_heads, 3, id="6 heads on 3 ranks"),
    ],
)
async def test_loss_scores_and_gradient_are_those_of_one_rank(
    tmp_path: Path, make: Callable[[Path], None], num_ranks: int
) -> None:
    make(tmp_path / "models")
    words = (tmp_path / "models", tmp_path / "found")
    await run_ranks("tests.learner.policy.sharing_rank", *words, num_ranks=num_ranks, folder=tmp_path)
    found = [json.loads((tmp_path / f"found.{rank}").read_text()) for rank in range(num_ranks)]
    num_models = len(list((tmp_path / "models").iterdir()))
    assert len(found[0]) == num_models * 8
    for name, case in ((name, case) for of_rank in found for name, case in of_rank.items()):
        for difference, norm in zip(case["difference"], case["norm"], strict=True):
            assert difference <= 1e-5 * max(1.0, norm), name
        # Ratios of whole responses may all be beyond their bounds.
        assert case["norm"][2] > 1e-3 or not name.endswith("mixed, False"), name
    assert any(case["norm"][2] > 1e-3 for name, case in found[0].items() if name.endswith("mixed, True"))
