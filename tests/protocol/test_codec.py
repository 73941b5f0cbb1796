from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import annotated_types
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dcpo_async.errors import ProtocolError, VersionMismatchError
from dcpo_async.protocol.codec import MESSAGE_TYPES, decode, encode
from dcpo_async.protocol.messages import PROTOCOL_VERSION, Bye, Envelope, GroupMessage, Heartbeat, LeaseMessage, Message
from dcpo_async.protocol.weight_messages import ChunkMessage
from dcpo_async.records import LeaseName

LIMIT = 1 << 20


def bounds(metadata: list[Any], kind: type) -> list[Any]:
    """The bounds of one kind, such as all greater-than ones."""
    return [getattr(m, kind.__name__.lower()) for m in metadata if isinstance(m, kind)]


def int_values(metadata: list[Any]) -> st.SearchStrategy[int]:
    lows = [*bounds(metadata, annotated_types.Ge), *(gt + 1 for gt in bounds(metadata, annotated_types.Gt))]
    highs = [*bounds(metadata, annotated_types.Le), *(lt - 1 for lt in bounds(metadata, annotated_types.Lt))]
    return st.integers(max([0, *lows]), min([(1 << 63) - 1, *highs]))


def float_values(metadata: list[Any]) -> st.SearchStrategy[float]:
    above = next(iter(bounds(metadata, annotated_types.Gt)), None)
    low = next(iter(bounds(metadata, annotated_types.Ge)), above)
    high = next(iter(bounds(metadata, annotated_types.Le)), None)
    return st.floats(low, high, exclude_min=above is not None, allow_nan=False, allow_infinity=False)


def values(annotation: Any, metadata: list[Any]) -> st.SearchStrategy[Any]:
    """Values that a field of this type allows."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        found = [m for a in args[1:] for m in (a.metadata if isinstance(a, FieldInfo) else [a])]
        return values(args[0], metadata + found)
    if origin is Literal:
        return st.sampled_from(args)
    if origin is tuple and args[-1] is Ellipsis:
        return st.lists(values(args[0], []), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*(values(arg, []) for arg in args))
    if origin is dict:
        return st.dictionaries(values(args[0], []), values(args[1], []), max_size=3)
    if origin in (Union, UnionType):
        return st.one_of(st.none() if arg is NoneType else values(arg, metadata) for arg in args)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return models(annotation)
    if isinstance(annotation, type) and issubclass(annotation, tuple):
        parts = get_type_hints(annotation, include_extras=True).values()
        return st.tuples(*(values(part, []) for part in parts)).map(lambda found: annotation(*found))
    patterns = [m.pattern for m in metadata if getattr(m, "pattern", None)]
    if annotation is str and patterns:
        return st.from_regex(patterns[0], fullmatch=True).filter(lambda text: text.isprintable() and len(text) <= 300)
    return {
        bool: st.booleans(),
        int: int_values(metadata),
        float: float_values(metadata),
        str: st.text(min_size=1, max_size=20),
    }[annotation]


def models(model: type[BaseModel]) -> st.SearchStrategy[Any]:
    fields = {name: values(f.annotation, f.metadata) for name, f in model.model_fields.items()}
    return st.fixed_dictionaries(fields).map(lambda body: model(**_aligned(body)))


def _aligned(body: dict[str, Any]) -> dict[str, Any]:
    """Heartbeats have as many tokens as leases."""
    return body | ({"tokens": (7,) * len(body["held"])} if "tokens" in body else {})


@st.composite
def envelopes(draw: st.DrawFn) -> Envelope:
    message_type = draw(st.sampled_from(sorted(MESSAGE_TYPES.values(), key=lambda t: t.kind)))
    arrays = {
        name: np.frombuffer(draw(st.binary(max_size=4)) * np.dtype(dtype).itemsize, dtype=dtype)
        for name, dtype in message_type.array_dtypes.items()
    }
    return Envelope(draw(models(message_type)), arrays, draw(st.text(max_size=20)), draw(st.integers(0, 1 << 40)))


def group_frames() -> list[bytes]:
    message = GroupMessage(
        position=7,
        attempt=1,
        lengths=(2, 1),
        segments=(((3, 2),), ((3, 1),)),
        finish_reasons=("stop", "length"),
        rewards=(1.0, 0.0),
        reasons=("correct", "no answer"),
        text_lengths=(1, 4),
    )
    arrays = {
        "token_ids": np.array([5, 6, 7], "<i4"),
        "behavior_logprobs": np.array([-0.5, -1.0, -2.0], "<f4"),
        "texts": np.frombuffer(b"4four", "|u1"),
    }
    return [bytes(frame) for frame in encode(Envelope(message, arrays, "run", 2))]


def changed_header(**changes: Any) -> list[bytes]:
    frames = group_frames()
    return [msgpack.packb({**msgpack.unpackb(frames[0]), **changes}), *frames[1:]]


def refusal(frames: list[Any], max_message_bytes: int = LIMIT) -> str:
    with pytest.raises(ProtocolError) as caught:
        decode(frames, max_message_bytes)
    return str(caught.value)


@settings(max_examples=150, deadline=None)
@given(envelopes())
def test_every_message_comes_back_as_it_was(envelope: Envelope) -> None:
    back = decode(encode(envelope), LIMIT)
    assert back.message == envelope.message
    assert type(back.message) is type(envelope.message)
    assert (back.run_id, back.incarnation) == (envelope.run_id, envelope.incarnation)
    assert {n: (a.dtype.str, a.tobytes()) for n, a in back.arrays.items()} == {
        n: (a.dtype.str, a.tobytes()) for n, a in envelope.arrays.items()
    }


def test_the_frames_of_a_group_are_a_header_and_little_endian_arrays() -> None:
    header, token_ids, logprobs, _ = group_frames()
    words = msgpack.unpackb(header)
    assert (words["v"], words["run"], words["inc"], words["kind"]) == (PROTOCOL_VERSION, "run", 2, "group")
    assert words["arrays"] == [["token_ids", 3], ["behavior_logprobs", 3], ["texts", 5]]
    assert token_ids == b"\5\0\0\0\6\0\0\0\7\0\0\0"
    assert logprobs == b"\0\0\0\xbf\0\0\x80\xbf\0\0\0\xc0"


def test_arrays_are_copied_neither_on_the_way_out_nor_on_the_way_in() -> None:
    data = np.arange(100, dtype="|u1")
    frames = encode(Envelope(ChunkMessage(weights_version=1, file="f", offset=0), {"data": data}))
    back = decode(frames, LIMIT).arrays["data"]
    assert np.shares_memory(back, data)
    assert not back.flags.writeable


def test_a_frame_at_an_odd_address_gives_an_aligned_array() -> None:
    header, token_ids, *others = group_frames()
    odd = memoryview(b"x" + token_ids)[1:]
    assert odd.obj is not None
    arrays = decode([header, odd, *others], LIMIT).arrays
    assert arrays["token_ids"].flags.aligned
    assert arrays["token_ids"].tolist() == [5, 6, 7]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=4))
def test_random_bytes_raise_nothing_but_a_protocol_error(frames: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        decode(frames, LIMIT)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mutated_frames_raise_nothing_but_a_protocol_error(data: st.DataObject) -> None:
    frames = group_frames()
    for _ in range(data.draw(st.integers(1, 3))):
        which = data.draw(st.integers(0, len(frames) - 1))
        frame = frames[which]
        start = data.draw(st.integers(0, len(frame)))
        end = data.draw(st.integers(start, min(start + 3, len(frame))))
        frames[which] = frame[:start] + data.draw(st.binary(max_size=3)) + frame[end:]
    try:
        envelope = decode(frames, LIMIT)
    except ProtocolError:
        return
    assert isinstance(envelope.message, Message)


@pytest.mark.parametrize(("version", "which"), [(0, "on the peer"), (99, "on this side")])
def test_another_protocol_version_says_which_side_to_upgrade(version: int, which: str) -> None:
    with pytest.raises(
        VersionMismatchError, match=f"version {version}, this side speaks {PROTOCOL_VERSION}.*{which}"
    ) as caught:
        decode(changed_header(v=version), LIMIT)
    assert (caught.value.peer_version, caught.value.kind) == (version, "group")


def test_the_version_is_looked_at_before_anything_else_in_the_message() -> None:
    with pytest.raises(VersionMismatchError) as caught:
        decode([msgpack.packb({"v": PROTOCOL_VERSION + 1, "something": "new"}), b"more"], LIMIT)
    assert caught.value.kind == ""


def test_a_message_over_the_limit_is_refused_with_both_sizes() -> None:
    assert "over the limit of 20" in refusal(group_frames(), max_message_bytes=20)


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    assert "'pickle'; known are ['hello'" in refusal(changed_header(kind="pickle"))


def test_unknown_words_in_header_or_body_are_refused() -> None:
    assert "surprise: Extra inputs" in refusal(changed_header(surprise=1))
    body = {"num_leases": 1, "surprise": 1}
    assert "want: surprise: Extra" in refusal(changed_header(kind="want", body=body, arrays=[])[:1])


@pytest.mark.parametrize("wrong", ["1", 1.0, True, -1, 1 << 63, None])
def test_a_number_of_another_type_or_range_is_refused(wrong: Any) -> None:
    header = {"v": PROTOCOL_VERSION, "run": "", "inc": 0, "kind": "lease_failed", "arrays": []}
    body = {"position": wrong, "attempt": 0, "reason": "", "is_prompts_fault": False}
    assert refusal([msgpack.packb({**header, "body": body})]).startswith("lease_failed: position: ")


def test_a_reward_that_is_not_finite_is_refused() -> None:
    body = msgpack.unpackb(group_frames()[0])["body"]
    assert "rewards.0: Input should be a finite number" in refusal(
        changed_header(body={**body, "rewards": [float("nan"), 0.0]})
    )


def test_extension_types_are_refused() -> None:
    assert "not msgpack" in refusal(changed_header(body=msgpack.ExtType(1, b"x")))


def test_arrays_under_other_names_or_in_other_order_are_refused() -> None:
    swapped = [["behavior_logprobs", 3], ["token_ids", 3]]
    assert "it must have ['token_ids', 'behavior_logprobs', 'texts']" in refusal(changed_header(arrays=swapped))


def test_bytes_that_are_not_a_whole_number_of_numbers_are_refused() -> None:
    header, token_ids, *others = group_frames()
    assert "token_ids has 11 bytes" in refusal([header, token_ids[:-1], *others])


def test_more_or_fewer_frames_than_arrays_are_refused() -> None:
    assert "1 frames of arrays, it must have 3" in refusal(group_frames()[:2])
    assert "4 frames of arrays, it must have 3" in refusal([*group_frames(), b""])
    assert "without frames" in refusal([])


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({}, r"has arrays \[\], it must have \['prompt_token_ids'\]"),
        ({"prompt_token_ids": np.zeros(3, "<i8")}, r"is <i8 \[3\], it must be <i4 \[n\]"),
        ({"prompt_token_ids": np.zeros((3, 1), "<i4")}, r"is <i4 \[3, 1\]"),
    ],
)
def test_an_array_of_another_name_type_or_shape_is_not_sent(arrays: dict[str, Any], reason: str) -> None:
    lease = LeaseMessage(position=1, attempt=1, prompt_id="p", visit=1, min_version=0, answer="4")
    with pytest.raises(ProtocolError, match=reason):
        encode(Envelope(lease, arrays))


def test_nested_names_of_leases_arrive_as_their_own_type() -> None:
    held = (LeaseName(position=4, attempt=2),)
    beat = Heartbeat(held=held, tokens=(7,), weights_version=1, tokens_generated=0, groups_in_flight=1)
    back = decode(encode(Envelope(beat)), LIMIT).message
    assert isinstance(back, Heartbeat)
    assert back.held == held


def test_a_heartbeat_tells_of_each_lease_that_it_lists() -> None:
    body = {"held": [[4, 2]], "tokens": [], "weights_version": 1, "tokens_generated": 0, "groups_in_flight": 1}
    assert "0 tokens for 1 held" in refusal(changed_header(kind="heartbeat", body=body, arrays=[])[:1])


def test_anything_with_the_buffer_protocol_is_a_frame() -> None:
    frames = [bytearray(frame) for frame in encode(Envelope(Bye(reason="done")))]
    assert decode(frames, LIMIT).message == Bye(reason="done")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [[-5, 1], [1 << 63, 1], [1], [1, 2, 3], ["1", 2]])
def test_names_of_leases_are_two_numbers_that_a_ledger_can_hold(name: list[object]) -> None:
    hello = {"session_id": "0" * 32, "name": "n", "host": "h", "engine": "e", "held": [name]}
    assert "held" in refusal(changed_header(kind="hello", body=hello, arrays=[])[:1])
