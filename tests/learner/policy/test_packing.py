import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from dcpo_async.records import TrainingSample
from learner.policy.packing import pack, pack_sequences, plan_micro_batches


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


def plan(samples: list[TrainingSample], max_tokens: int) -> list[list[int]]:
    return plan_micro_batches(samples, max_tokens, one_by_one=False)


def test_the_longest_come_first_and_the_shorter_fill_the_room() -> None:
    assert plan(of_lengths((1, 2), (2, 3), (2, 2)), max_tokens=8) == [[1, 0], [2]]


def test_a_sample_longer_than_the_budget_goes_alone() -> None:
    assert plan(of_lengths((5, 20), (1, 1), (1, 1)), max_tokens=10) == [[0], [1, 2]]


def test_an_empty_response_is_left_out() -> None:
    assert plan(of_lengths((5, 0), (1, 1)), max_tokens=10) == [[1]]


def test_a_model_that_mixes_sequences_gets_one_at_a_time() -> None:
    assert plan_micro_batches(of_lengths((1, 1), (1, 2), (3, 0)), max_tokens=10, one_by_one=True) == [[1], [0]]


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 30)), max_size=30),
    st.integers(1, 100),
    st.randoms(use_true_random=False),
)
def test_the_plan_holds_each_response_once_within_budget_in_whatever_order_they_come(
    lengths: list[tuple[int, int]], max_tokens: int, random: object
) -> None:
    samples = of_lengths(*lengths)
    found = plan(samples, max_tokens)
    assert sorted(i for chosen in found for i in chosen) == [i for i, s in enumerate(samples) if len(s.token_ids)]
    for chosen in found:
        assert len(chosen) == 1 or sum(sum(lengths[i]) for i in chosen) <= max_tokens
    # First fit leaves at most one micro-batch that is not more than half full.
    assert sum(2 * sum(sum(lengths[i]) for i in chosen) <= max_tokens for chosen in found) <= 1
    shuffled = list(samples)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    again = plan(shuffled, max_tokens)
    assert [[shuffled[i].position for i in chosen] for chosen in again] == found


def test_pack_puts_sequences_into_one_row_and_points_one_state_before_each_response_token() -> None:
    batch = pack([sample([5, 6, 7], [8, 9], position=2, advantage=0.5), sample([3], [4], position=1, advantage=-1)])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 3, 4]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1]]
    assert batch.bounds.tolist() == [0, 5, 7]
    assert batch.longest.item() == 5
    assert batch.states.tolist() == [2, 3, 5]
    assert batch.sequences.tolist() == [0, 0, 1]
    assert batch.token_ids.tolist() == [8, 9, 4]
    assert batch.advantages.tolist() == [0.5, 0.5, -1.0]
    assert batch.token_weights.tolist() == [0.5, 0.5, 1.0]
    assert batch.token_counts.tolist() == [1.0, 1.0, 1.0]
    assert batch.token_lags.tolist() == [2, 2, 1]
    torch.testing.assert_close(batch.behavior_logprobs, torch.tensor([-0.1, -0.2, -0.1]))
    torch.testing.assert_close(batch.old_logprobs, torch.tensor([-0.2, -0.4, -0.2]))


def test_a_micro_batch_of_no_samples_has_one_sequence_and_no_response_token() -> None:
    batch = pack([])
    assert batch.input_ids.tolist() == [[0]]
    assert batch.bounds.tolist() == [0, 1]
    assert all(len(tensor) == 0 for tensor in batch[4:])


def test_a_sequence_is_scored_from_its_second_token_on() -> None:
    batch = pack_sequences([[7, 8, 9], [5, 6]])
    assert batch.input_ids.tolist() == [[7, 8, 9, 5, 6]]
    assert batch.states.tolist() == [0, 1, 3]
    assert batch.token_ids.tolist() == [8, 9, 6]
