import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from dcpo_async.records import TrainingSample
from learner.trainer.packing import pack, plan_micro_batches


def sample(
    prompt: list[int], response: list[int], position: int = 0, index: int = 0, advantage: float = 1.0
) -> TrainingSample:
    logprobs = -0.1 * np.arange(1, len(response) + 1, dtype=np.float32)
    return TrainingSample(
        position=position,
        index=index,
        prompt_token_ids=np.array(prompt, dtype=np.int32),
        token_ids=np.array(response, dtype=np.int32),
        behavior_logprobs=logprobs,
        old_logprobs=2 * logprobs,
        token_lags=np.full(len(response), position, dtype=np.int32),
        advantage=advantage,
        token_weight=1.0 / max(1, len(response)),
    )


def of_lengths(*lengths: tuple[int, int]) -> list[TrainingSample]:
    return [sample([1] * prompt, [2] * response, position) for position, (prompt, response) in enumerate(lengths)]


def test_samples_of_like_length_share_a_micro_batch() -> None:
    assert plan_micro_batches(of_lengths((1, 2), (2, 3), (2, 2)), max_tokens=10) == [[1, 2], [0]]


def test_a_sample_longer_than_the_budget_goes_alone() -> None:
    assert plan_micro_batches(of_lengths((5, 20), (1, 1), (1, 1)), max_tokens=10) == [[0], [1, 2]]


def test_an_empty_response_is_left_out() -> None:
    assert plan_micro_batches(of_lengths((5, 0), (1, 1)), max_tokens=10) == [[1]]


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 30)), max_size=30),
    st.integers(1, 100),
    st.randoms(use_true_random=False),
)
def test_the_plan_holds_each_response_once_within_budget_in_whatever_order_they_come(
    lengths: list[tuple[int, int]], max_tokens: int, random: object
) -> None:
    samples = of_lengths(*lengths)
    plan = plan_micro_batches(samples, max_tokens)
    assert sorted(i for chosen in plan for i in chosen) == [i for i, s in enumerate(samples) if len(s.token_ids)]
    for chosen in plan:
        assert len(chosen) == 1 or len(chosen) * max(sum(lengths[i]) for i in chosen) <= max_tokens
    shuffled = list(samples)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    again = plan_micro_batches(shuffled, max_tokens)
    assert [[shuffled[i].position for i in chosen] for chosen in again] == plan


def test_pack_pads_on_the_right_and_points_one_column_before_each_response_token() -> None:
    batch = pack([sample([5, 6, 7], [8, 9], position=2, advantage=0.5), sample([3], [4], position=1, advantage=-1)])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9], [3, 4, 0, 0, 0]]
    assert batch.rows.tolist() == [0, 0, 1]
    assert batch.columns.tolist() == [2, 3, 0]
    assert batch.token_ids.tolist() == [8, 9, 4]
    assert batch.advantages.tolist() == [0.5, 0.5, -1.0]
    assert batch.token_weights.tolist() == [0.5, 0.5, 1.0]
    assert batch.token_lags.tolist() == [2, 2, 1]
    torch.testing.assert_close(batch.behavior_logprobs, torch.tensor([-0.1, -0.2, -0.1]))
    torch.testing.assert_close(batch.old_logprobs, torch.tensor([-0.2, -0.4, -0.2]))


def test_a_micro_batch_of_no_samples_has_one_sequence_and_no_response_token() -> None:
    batch = pack([])
    assert batch.input_ids.tolist() == [[0]]
    assert all(len(tensor) == 0 for tensor in batch[1:])
