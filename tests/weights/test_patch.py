"""Patches restore every bit of every dtype, and refuse everything that is not meant for the base at hand."""

import json
import struct

import pytest
import torch
import xxhash
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dcpo_async.errors import WeightsError
from dcpo_async.weights.patch import apply_patch, encode_patch

DTYPES = [
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.float64,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.complex128,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]


def bits(tensor: Tensor) -> list[int]:
    """The oracle: a tensor's storage, byte by byte."""
    return list(bytes(tensor.contiguous().untyped_storage()))


def tensor_of(data: bytes, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)


@st.composite
def two_versions(draw: st.DrawFn) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Two sets of tensors of any bits; the second changes any share of the first's elements."""
    base, new = {}, {}
    for number in range(draw(st.integers(0, 3))):
        dtype = draw(st.sampled_from(DTYPES))
        size = dtype.itemsize
        old = draw(st.lists(st.binary(min_size=size, max_size=size), max_size=40))
        changes = draw(st.dictionaries(st.integers(0, 39), st.binary(min_size=size, max_size=size)))
        fresh = [changes.get(i, element) for i, element in enumerate(old)]
        if dtype is torch.bool:
            old, fresh = ([bytes([element[0] & 1]) for element in side] for side in (old, fresh))
        base[f"t{number}"] = tensor_of(b"".join(old), dtype)
        new[f"t{number}"] = tensor_of(b"".join(fresh), dtype)
    return base, new


@given(two_versions())
@settings(max_examples=100, deadline=None)
def test_a_patch_restores_every_bit_and_applies_twice(
    pair: tuple[dict[str, Tensor], dict[str, Tensor]],
) -> None:
    base, new = pair
    before = {name: bits(tensor) for name, tensor in base.items()}
    patch = encode_patch(base, new)
    once = apply_patch(base, patch)
    assert list(once) == list(base)
    for patched in (once, apply_patch(once, patch)):
        assert {name: bits(tensor) for name, tensor in patched.items()} == {
            name: bits(tensor) for name, tensor in new.items()
        }
        assert [(t.dtype, t.shape) for t in patched.values()] == [(t.dtype, t.shape) for t in new.values()]
    assert {name: bits(tensor) for name, tensor in base.items()} == before


def test_negative_zero_and_nan_payloads_survive() -> None:
    base = {"w": torch.zeros(16)}
    new = {"w": torch.zeros(16)}
    new["w"][3] = -0.0
    new["w"].view(torch.int32)[7] = 0x7FC01234
    patched = apply_patch(base, encode_patch(base, new))["w"]
    assert patched.view(torch.int32)[3] == -0x80000000
    assert patched.view(torch.int32)[7] == 0x7FC01234


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3), (1, 1, 5)])
def test_shapes_are_kept(shape: tuple[int, ...]) -> None:
    base = {"w": torch.zeros(shape, dtype=torch.bfloat16)}
    new = {"w": torch.ones(shape, dtype=torch.bfloat16)}
    assert torch.equal(apply_patch(base, encode_patch(base, new))["w"], new["w"])


def test_transposed_views_and_parameters_are_taken_in_row_major_order() -> None:
    base = {"w": torch.nn.Parameter(torch.arange(6.0).reshape(2, 3)).T}
    new = {"w": (torch.arange(6.0).reshape(2, 3) + 1).T}
    assert torch.equal(apply_patch(base, encode_patch(base, new))["w"], new["w"])


def test_one_changed_element_in_a_hundred_makes_a_small_patch() -> None:
    base = {"w": torch.zeros(100_000, dtype=torch.bfloat16)}
    new = {"w": base["w"].clone()}
    new["w"][::100] = 1.0
    # A thousand changes, all alike: the coder finds that out.
    assert len(encode_patch(base, new)) < 400


def test_small_moves_at_random_places_take_less_than_a_byte_and_a_half_each() -> None:
    generator = torch.Generator().manual_seed(1)
    base = {"w": torch.randn(1_000_000, generator=generator).bfloat16()}
    new = {"w": base["w"].clone()}
    places = torch.randperm(1_000_000, generator=generator)[:5_000]
    signs = torch.randint(0, 2, (5_000,), generator=generator, dtype=torch.int16) * 2 - 1
    new["w"].view(torch.int16)[places] += signs
    # Gaps of 200 on average have 9.1 bits of entropy, a sign has one: 6,300 bytes would be perfect.
    header_bytes = 300
    assert len(encode_patch(base, new)) < 7_500 + header_bytes


@pytest.mark.parametrize(
    "places", [[0], [65_535], [65_536], [70_000, 70_001, 299_999], [0, 65_536, 131_073, 262_144], [299_999]]
)
def test_gaps_of_any_length_are_kept(places: list[int]) -> None:
    base, new = {"w": torch.zeros(300_000)}, {"w": torch.zeros(300_000)}
    new["w"][places] = torch.arange(1.0, len(places) + 1)
    assert torch.equal(apply_patch(base, encode_patch(base, new))["w"], new["w"])


@pytest.mark.parametrize("step", [1, -1, 127, -127, 128, -128, 1 << 14])
def test_moves_of_any_size_are_kept_and_are_not_taken_twice(step: int) -> None:
    base = {"w": torch.ones(1000, dtype=torch.bfloat16)}
    new = {"w": base["w"].clone()}
    new["w"].view(torch.int16)[7] += step
    patch = encode_patch(base, new)
    once = apply_patch(base, patch)
    assert torch.equal(once["w"].view(torch.int16), new["w"].view(torch.int16))
    assert torch.equal(apply_patch(once, patch)["w"].view(torch.int16), new["w"].view(torch.int16))


def test_a_patch_never_outgrows_the_full_tensor() -> None:
    base = {"w": torch.zeros(10_000, dtype=torch.bfloat16)}
    new = {"w": torch.ones(10_000, dtype=torch.bfloat16)}
    assert 20_000 < len(encode_patch(base, new)) < 20_400


def test_equal_weights_give_the_same_bytes() -> None:
    base, new = {"w": torch.zeros(50)}, {"w": torch.arange(50.0)}
    assert encode_patch(base, new) == encode_patch(base, new)


@pytest.mark.parametrize(
    "other",
    [
        {"v": torch.zeros(4)},
        {"w": torch.zeros(5)},
        {"w": torch.zeros(2, 2)},
        {"w": torch.zeros(4, dtype=torch.int32)},
        {"w": torch.zeros(4), "v": torch.zeros(1)},
        {},
    ],
)
def test_another_name_shape_or_dtype_is_refused_on_both_sides(other: dict[str, Tensor]) -> None:
    base = {"w": torch.zeros(4)}
    with pytest.raises(WeightsError):
        encode_patch(base, other)
    with pytest.raises(WeightsError):
        apply_patch(other, encode_patch(base, {"w": torch.ones(4)}))


def test_a_patch_for_another_base_is_refused() -> None:
    base, new = {"w": torch.zeros(100)}, {"w": torch.zeros(100)}
    new["w"][0] = 1.0
    with pytest.raises(WeightsError, match="another base"):
        apply_patch({"w": torch.full((100,), 5.0)}, encode_patch(base, new))


def test_a_patch_without_changes_still_checks_its_base() -> None:
    patch = encode_patch({"w": torch.zeros(8)}, {"w": torch.zeros(8)})
    with pytest.raises(WeightsError, match="another base"):
        apply_patch({"w": torch.ones(8)}, patch)


def test_every_flipped_byte_and_every_cut_is_refused() -> None:
    base, new = {"w": torch.zeros(40)}, {"w": torch.zeros(40)}
    new["w"][5] = 2.0
    patch = encode_patch(base, new)
    for position in range(len(patch)):
        flipped = patch[:position] + bytes([patch[position] ^ 0x10]) + patch[position + 1 :]
        for broken in (flipped, patch[:position]):
            with pytest.raises(WeightsError):
                apply_patch(base, broken)
    with pytest.raises(WeightsError):
        apply_patch(base, patch + b"\0")


def sealed(header: bytes, payload: bytes) -> bytes:
    """A patch whose digest holds, whatever is in it."""
    packed = zstandard.compress(header)
    prefix = struct.pack("<8sIQ", b"dcpopach", 2, len(packed))
    return prefix + xxhash.xxh3_128(prefix + packed + payload).digest() + packed + payload


def change(*sections: bytes, **fields: object) -> tuple[bytes, bytes]:
    """Header and payload of a change of four int32 to zeros."""
    of_tensor = {
        "name": "w",
        "dtype": "int32",
        "shape": [4],
        "digest": xxhash.xxh3_128(bytes(16)).hexdigest(),
        "encoding": "sparse",
        "section_bytes": [len(section) for section in sections],
    }
    return json.dumps([of_tensor | fields]).encode(), b"".join(sections)


def planes(*values: bytes) -> tuple[bytes, ...]:
    return tuple(zstandard.compress(value) for value in values)


STEP = {"num_changes": 1, "num_gaps": 1}
FAR = STEP | {"num_far": 1}
NO_BITS = (b"",) * 4


def test_a_hand_made_patch_follows_the_documented_layout() -> None:
    base = {"w": torch.tensor([0, 7, 0, 0], dtype=torch.int32)}
    # One unchanged word before the second, which moves by -7.
    by_steps = sealed(*change(*planes(b"\1", b"\0", b"\xf9", *NO_BITS), **STEP))
    by_bits = sealed(*change(*planes(b"\1", b"\0", b"\x80", b"\0", b"\0", b"\0", b"\0"), **FAR))
    dense = sealed(*change(bytes(16), encoding="dense", num_changes=4))
    for patch in (by_steps, by_bits, dense):
        assert apply_patch(base, patch)["w"].tolist() == [0, 0, 0, 0]


ONE = planes(b"\1", b"\0", b"\xf9", *NO_BITS)
"""What the hand-made patch has."""


@pytest.mark.parametrize(
    ("head", "payload"),
    [
        change(*planes(b"\4", b"\0", b"\xf9", *NO_BITS), **STEP),  # beyond the last word
        change(*planes(b"\1\2", b"\0\0", b"\0\0", *NO_BITS), num_changes=2, num_gaps=2),
        change(*planes(b"\1", b"\0", b"\0\0", *NO_BITS), **STEP),  # more steps than changes
        change(*planes(b"\xff", b"\xff", b"\0", *NO_BITS), **STEP),  # a long gap and nothing behind it
        change(*planes(b"\1", b"\0", b"\x80", *NO_BITS), **STEP),  # far, without its bits
        change(*planes(b"\1", b"\0", b"\xf9", b"\0", b"\0", b"\0", b"\0"), **FAR),  # bits of a word that is near
        change(*ONE[:3], **STEP),
        change(*ONE[:3], *planes(b"x", b"x", b"x", b"x"), **STEP),  # bits that nobody asks for
        change(ONE[0] + ONE[1], *ONE[1:], **STEP),  # something behind a frame
        change(*[b""] * 12, **STEP),
        change(*ONE, *planes(b""), **STEP),
        change(b"\1", b"\0", b"\xf9", *NO_BITS, **STEP),  # not compressed
        change(*ONE, **STEP | {"num_changes": 5, "num_gaps": 5}),
        change(*ONE, **STEP | {"num_gaps": 1 << 40}),
        change(*ONE, **STEP | {"num_far": 2}),
        change(*ONE, **STEP | {"num_changes": 0}),
        change(*ONE, **STEP | {"num_changes": -1}),
        change(*ONE, **STEP | {"section_bytes": [9, 9, 9, 9, 9, 9, 1 << 40]}),
        change(bytes(12), encoding="dense", num_changes=3),
        change(bytes(16), encoding="dense", num_changes=3),
        change(bytes(8), bytes(8), encoding="dense", num_changes=4),
        change(bytes(16), encoding="same"),
        change(encoding="same", num_changes=1),
        change(encoding="other"),
        (b"[]", b""),
        (b"\xff", b""),
        (b"", b""),
    ],
)
def test_a_sealed_patch_with_impossible_content_is_refused(head: bytes, payload: bytes) -> None:
    with pytest.raises(WeightsError):
        apply_patch({"w": torch.tensor([0, 7, 0, 0], dtype=torch.int32)}, sealed(head, payload))


def test_an_empty_tensor_has_nothing_to_store() -> None:
    head, payload = change(b"", shape=[0], digest=xxhash.xxh3_128(b"").hexdigest(), encoding="dense")
    with pytest.raises(WeightsError):
        apply_patch({"w": torch.empty(0, dtype=torch.int32)}, sealed(head, payload))


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float32, torch.float64])
def test_changes_at_the_edges_of_what_is_compared_at_once_are_found(dtype: torch.dtype) -> None:
    num_words = (1 << 20) // dtype.itemsize
    base = {"w": torch.zeros(2 * num_words + 3, dtype=dtype)}
    new = {"w": base["w"].clone()}
    new["w"][[0, num_words - 1, num_words, 2 * num_words - 1, 2 * num_words, 2 * num_words + 2]] = 1
    assert torch.equal(apply_patch(base, encode_patch(base, new))["w"], new["w"])


def test_a_frame_that_claims_to_be_huge_is_refused_before_it_is_unpacked() -> None:
    bomb = zstandard.compress(bytes(1 << 28))
    head, payload = change(bomb, *planes(b"\0", b"\0", *NO_BITS), **STEP)
    with pytest.raises(WeightsError, match="does not hold 1 bytes"):
        apply_patch({"w": torch.zeros(4, dtype=torch.int32)}, sealed(head, payload))
