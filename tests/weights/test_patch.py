"""Patches restore every bit of every dtype, and refuse everything that is not meant for the base at hand."""

import struct

import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dcpo_async.errors import WeightsError
from dcpo_async.weights import apply_patch, encode_patch

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
    # 1000 changes of 4 bytes for the index and 2 for the bits.
    assert 6000 < len(encode_patch(base, new)) < 6400


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
    prefix = struct.pack("<8sIQ", b"dcpopach", 1, len(header))
    return prefix + xxhash.xxh3_128(prefix + header + payload).digest() + header + payload


def header(encoding: str, num_words: int) -> bytes:
    digest = xxhash.xxh3_128(bytes(16)).hexdigest()
    return (
        f'[{{"name":"w","dtype":"int32","shape":[4],"digest":"{digest}","encoding":"{encoding}",'
        f'"num_words":{num_words}}}]'
    ).encode()


def test_a_hand_made_patch_follows_the_documented_layout() -> None:
    base = {"w": torch.tensor([0, 7, 0, 0], dtype=torch.int32)}
    patch = sealed(header("sparse", 1), struct.pack("<Ii", 1, 0))
    assert apply_patch(base, patch)["w"].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("head", "payload"),
    [
        (header("sparse", 1), struct.pack("<Ii", 4, 0)),
        (header("sparse", 2), struct.pack("<IIii", 1, 1, 0, 0)),
        (header("sparse", 2), struct.pack("<IIii", 2, 1, 0, 0)),
        (header("sparse", 1), struct.pack("<I", 1)),
        (header("sparse", 1), struct.pack("<Iii", 1, 0, 0)),
        (header("sparse", 5), bytes(40)),
        (header("full", 3), bytes(12)),
        (header("full", 1 << 62), bytes(16)),
        (header("full", -1), b""),
        (header("other", 0), b""),
        (header("sparse", 0)[:-1] + b"," + header("sparse", 0)[1:], b""),
        (b"[]", b""),
        (b"\xff", b""),
        (b"", b""),
    ],
)
def test_a_sealed_patch_with_impossible_content_is_refused(head: bytes, payload: bytes) -> None:
    with pytest.raises(WeightsError):
        apply_patch({"w": torch.zeros(4, dtype=torch.int32)}, sealed(head, payload))
