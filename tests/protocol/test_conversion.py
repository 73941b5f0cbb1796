from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dcpo_async.config import GradingSettings
from dcpo_async.protocol.codec import decode, encode
from dcpo_async.protocol.conversion import (
    check_group,
    group_from_message,
    group_to_message,
    lease_from_message,
    lease_to_message,
    made_by,
    sampling_of,
)
from dcpo_async.protocol.messages import Array, Envelope, GroupMessage, LeaseMessage, Welcome
from dcpo_async.records import Group, Lease, Response, VersionSegment
from tests.protocol.made_session import WELCOME


def response(token_ids: list[int], logprobs: list[float], *segments: tuple[int, int]) -> Response:
    return Response(
        np.array(token_ids, np.int32),
        np.array(logprobs, np.float32),
        tuple(VersionSegment(*segment) for segment in segments),
        "stop",
        f"text of {len(token_ids)} tokens",
    )


GROUP = Group(
    position=9,
    attempt=2,
    responses=(
        response([4, 5, 6], [-0.1, -0.2, 0.0], (1, 2), (3, 1)),
        response([], []),
        response([7], [-3.0], (3, 1)),
    ),
    rewards=(1.0, 0.0, -0.5),
    reasons=("correct", "no answer", "wrong"),
)
GRADING = GradingSettings(format_penalty=0.5)
MESSAGE, ARRAYS = group_to_message(GROUP)


def problem(message: GroupMessage = MESSAGE, **arrays: Any) -> str | None:
    dtypes = {"token_ids": np.int32, "behavior_logprobs": np.float32}
    changed: dict[str, Array] = ARRAYS | {n: np.array(a, dtypes[n]) for n, a in arrays.items()}
    return check_group(message, changed, group_size=3, vocab_size=8, max_response_tokens=3, grading=GRADING)


def test_a_group_survives_the_wire_with_its_empty_response() -> None:
    envelope = decode(encode(Envelope(MESSAGE, ARRAYS)), 1 << 20)
    assert isinstance(envelope.message, GroupMessage)
    back = group_from_message(envelope.message, envelope.arrays)
    assert [r.token_ids.tolist() for r in back.responses] == [[4, 5, 6], [], [7]]
    assert [r.behavior_logprobs.dtype for r in back.responses] == [np.float32] * 3
    assert back.responses[0].behavior_logprobs.tolist() == GROUP.responses[0].behavior_logprobs.tolist()
    assert back.responses[0].segments == (VersionSegment(1, 2), VersionSegment(3, 1))
    assert [(r.finish_reason, r.text) for r in back.responses] == [(r.finish_reason, r.text) for r in GROUP.responses]
    assert replace(back, responses=()) == replace(GROUP, responses=())


def test_stop_texts_and_tokens_reach_the_actor_and_mark_its_groups() -> None:
    given = {"stop": ("</answer>", "\nQ:"), "stop_token_ids": (7, 9)}
    plain, stopped = (
        WELCOME.model_copy(update={"sampling": WELCOME.sampling.model_copy(update=update)}) for update in ({}, given)
    )
    heard = decode(encode(Envelope(stopped)), 1 << 20).message
    assert isinstance(heard, Welcome)
    assert (sampling_of(heard).stop, sampling_of(heard).stop_token_ids) == (("</answer>", "\nQ:"), (7, 9))
    assert made_by(heard) == made_by(stopped) != made_by(plain)


def test_a_lease_survives_the_wire() -> None:
    lease = Lease(5, 1, "p", 3, 2, np.array([1, 2, 3], np.int32), "42")
    message, arrays = lease_to_message(lease)
    envelope = decode(encode(Envelope(message, arrays)), 1 << 20)
    assert isinstance(envelope.message, LeaseMessage)
    back = lease_from_message(envelope.message, envelope.arrays)
    assert back.prompt_token_ids.tolist() == [1, 2, 3]
    empty = np.empty(0, np.int32)
    assert replace(back, prompt_token_ids=empty).answer == "42"
    assert (back.position, back.attempt, back.prompt_id, back.visit, back.min_version) == (5, 1, "p", 3, 2)


def test_a_sound_group_is_not_refused() -> None:
    assert problem() is None


def test_a_log_probability_that_rounding_lifted_above_zero_is_not_refused() -> None:
    assert problem(behavior_logprobs=[1e-7, -1.0, -1.0, -1.0]) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rewards": (1.0, 0.0)}, "2 rewards, a group has 3 responses"),
        ({"text_lengths": (1,) * 4}, "4 text_lengths, a group has 3 responses"),
        ({"text_lengths": (16, 16, 15)}, "48 bytes of texts that should take 47"),
        ({"rewards": (1.0, 0.0, 0.5)}, "reward 0.5 of response 2, allowed are [-0.5, 0.0, 1.0]"),
        ({"lengths": (4, 0, 0)}, "a response of 4 tokens, at most 3 are allowed"),
        ({"lengths": (3, 0, 2)}, "4 token_ids for responses of 5 tokens"),
        (
            {"segments": (((1, 2),), (), ((3, 1),))},
            "segments ((1, 2),) of response 0 do not add up to its 3 tokens",
        ),
        (
            {"segments": (((1, 3),), ((1, 0),), ((3, 1),))},
            "segments ((1, 0),) of response 1 hold an empty one",
        ),
        ({"segments": (((3, 2), (1, 1)), (), ((3, 1),))}, "weights versions [3, 1] of response 0 go down"),
    ],
)
def test_a_group_whose_header_is_wrong_is_refused_for(change: dict[str, object], reason: str) -> None:
    assert problem(MESSAGE.model_copy(update=change)) == reason


@pytest.mark.parametrize(
    ("rewards", "reason"),
    [
        ((-1.0, 0.333333333, 1.0), None),
        ((1.5, 0.0, 0.0), "reward 1.5 of response 0, the range is -1 to 1"),
        ((0.0, -1.000000001, 0.0), "reward -1.000000001 of response 1, the range is -1 to 1"),
        ((0.0, 0.0, float("nan")), "reward nan of response 2, the range is -1 to 1"),
        ((1 / 3, 0.0, 0.0), "reward 0.3333333333333333 of response 0 is not in whole billionths"),
    ],
)
def test_own_rewards_lie_within_their_range_in_whole_billionths(rewards: tuple[float, ...], reason: str | None) -> None:
    own = GradingSettings(reward="module:function", reward_range=(-1.0, 1.0))
    message = MESSAGE.model_copy(update={"rewards": rewards})
    assert check_group(message, ARRAYS, group_size=3, vocab_size=8, max_response_tokens=3, grading=own) == reason


@pytest.mark.parametrize(
    ("name", "numbers", "reason"),
    [
        ("token_ids", [4, 5, 8, 7], "token 8, the vocabulary has 8"),
        ("token_ids", [4, -1, 6, 7], "token -1, the vocabulary has 8"),
        ("token_ids", [4, 5, 6], "3 token_ids for responses of 4 tokens"),
        ("behavior_logprobs", [-1.0] * 5, "5 behavior_logprobs for responses of 4 tokens"),
        (
            "behavior_logprobs",
            [-1, 0.5, -1, -1],
            "log-probability 0.5, it must be finite and not above 0",
        ),
        (
            "behavior_logprobs",
            [-1, np.nan, -1, -1],
            "log-probability nan, it must be finite and not above 0",
        ),
        (
            "behavior_logprobs",
            [-1, -np.inf, -1, -1],
            "log-probability -inf, it must be finite and not above 0",
        ),
        (
            "behavior_logprobs",
            [-1, np.inf, -1, -1],
            "log-probability inf, it must be finite and not above 0",
        ),
    ],
)
def test_a_group_whose_numbers_are_wrong_is_refused_for(name: str, numbers: Any, reason: str) -> None:
    changed: dict[str, Any] = {name: numbers}
    assert problem(**changed) == reason
