"""Sparse patches: the elements of a model's weights that changed between two versions, bit for bit.

Layout, little-endian: magic, format version, length of the header, digest of all else; a JSON header (zstd); then the
sections of each tensor in it, one after another. A tensor without a change has none, one that is stored dense has its
bytes. A sparse one has the planes of its gaps and values, each a zstd frame:

- gaps: how many unchanged words stand before each changed one, as uint16, low bytes and high bytes apart; a gap of
  65535 or more is that many words and the rest, as often as it takes.
- steps: how far each word's bit pattern moves, as int8; -128 for a word that moves further than 127.
- bits: the new bits of those words, each of their bytes in a plane of its own.

At learning rates of reinforcement learning few elements of a bfloat16 model move in a step, nearly all of them by one
unit in the last place, so that a patch is a few thousandths of the model.
"""

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import xxhash
import zstandard
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from dcpo_async.errors import WeightsError
from dcpo_async.weights.manifest import Digest
from dcpo_async.weights.raw import (
    LONG_GAP,
    byte_planes,
    bytes_digest,
    dtype_name,
    gaps_of,
    indices_of,
    joined_planes,
    raw_bytes,
    tensor_from_raw,
)

_MAGIC = b"dcpopach"
_FORMAT_VERSION = 2
_PREFIX = struct.Struct("<8sIQ")  # magic, format version, bytes of the compressed header
_DIGEST_BYTES = 16
_MAX_STEP, _FAR = 127, -128
_DENSE_FROM = 1 / 3
"""A tensor of which so much changes is not worth a try at sparse coding."""
_FEW = 64
_ZSTD_LEVEL = 1
_TILE_BYTES = 1 << 20
"""Tensors are compared in stretches that stay in a core's cache."""
_MAX_HEADER_BYTES = 16 << 20

S = TypeVar("S")
T = TypeVar("T")
Bytes = NDArray[np.uint8]
Words = NDArray[np.unsignedinteger[Any]]
Count = Annotated[int, Field(ge=0, lt=1 << 48)]


class _Change(BaseModel):
    """How one tensor changes.

    Attributes:
        digest: of the tensor's bytes once the change is applied.
        num_changes: words that the patch stores; a word is an element, or 8 bytes of a larger one.
        num_gaps, num_far: numbers in the planes of gaps and of bits.
        section_bytes: length of each section.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    name: str
    dtype: str
    shape: Annotated[tuple[Count, ...], Field(max_length=64)]
    digest: Digest
    encoding: Literal["same", "sparse", "dense"]
    num_changes: Count = 0
    num_gaps: Count = 0
    num_far: Count = 0
    section_bytes: Annotated[tuple[Count, ...], Field(max_length=3 + 8)] = ()


_CHANGES = TypeAdapter(tuple[_Change, ...])


def encode_patch(
    base: dict[str, Tensor], new: dict[str, Tensor], *, digests: Mapping[str, str] | None = None, threads: int = 1
) -> bytes:
    """The patch that turns `base` into `new`; raw bits are compared, so -0.0 and NaN payloads survive.

    Both hold the same names with the same shapes and dtypes, of any kind. Each tensor is stored in the smaller of the
    two ways. Raises WeightsError where the two differ in a name, shape or dtype, or have too many tensors.

    Args:
        digests: `raw.bytes_digest` of each tensor in `new`, where they are known.
        threads: tensors compared at once.

    Example: of 100,000 bfloat16 zeros every hundredth becomes 1.0; the patch has under 300 bytes.
    """
    _require_same_names(base, list(new))
    for name, tensor in new.items():
        _require_same_kind(name, base[name], dtype_name(tensor), tuple(tensor.shape))

    def encoded(name: str) -> tuple[_Change, list[bytes | memoryview]]:
        return _encoded(name, base[name], new[name], (digests or {}).get(name))

    encodings = list(_mapped(encoded, new, threads))
    changes = tuple(change for change, _ in encodings)
    sections = [section for _, of_tensor in encodings for section in of_tensor]
    text = _CHANGES.dump_json(changes)
    if len(text) > _MAX_HEADER_BYTES:
        raise WeightsError(f"a patch of {len(changes)} tensors has a header of {len(text)} bytes, which nobody reads")
    header = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(text)
    prefix = _PREFIX.pack(_MAGIC, _FORMAT_VERSION, len(header))
    return b"".join([prefix, _digest_of(prefix, header, *sections), header, *sections])


def apply_patch(base: dict[str, Tensor], patch: bytes) -> dict[str, Tensor]:
    """The weights that the patch leads to; applied to its own result it changes nothing.

    `base` is left as it is; tensors that do not change are shared with it. Raises WeightsError when the
    patch is malformed, when names, shapes or dtypes differ, and when `base` is not what the patch was made
    for (the digest of a resulting tensor differs).
    """
    patched = {
        change.name: _patched(base[change.name], change, sections) for change, sections in _changes_to(base, patch)
    }
    return {name: patched[name] for name in base}


def change_in_place(tensors: dict[str, Tensor], patch: bytes, *, threads: int = 1) -> None:
    """Apply a patch to the memory of tensors, without a look at digests of what was there and of what comes out.

    For whoever checks the result by other means, and throws it away where it is wrong: steps change another base, or
    the same one a second time, into something that nobody published.

    Args:
        tensors: contiguous ones on the CPU; some may have changed where this raises.
        threads: tensors changed at once.

    Raises WeightsError when the patch is malformed, and when names, shapes or dtypes differ.
    """

    def change_one(work: tuple[_Change, list[memoryview]]) -> None:
        change, sections = work
        _change_raw(raw_bytes(tensors[change.name]), tensors[change.name], change, sections)

    for _ in _mapped(change_one, _changes_to(tensors, patch), threads):
        pass


def changed_indices(patch: bytes) -> dict[str, NDArray[np.int64] | None]:
    """Which elements of each tensor a patch overwrites, flat and ascending; None for all, no entry for none.

    Raises WeightsError when the patch is malformed.
    """
    return {
        change.name: None if change.encoding == "dense" else _indices(change, sections, math.prod(change.shape))
        for change, sections in _changes_in(patch)
        if change.encoding != "same"
    }


def _changes_to(base: dict[str, Tensor], patch: bytes) -> list[tuple[_Change, list[memoryview]]]:
    """The changes of a patch, each with its sections; it must be one for tensors of these names and kinds."""
    found = _changes_in(patch)
    _require_same_names(base, [change.name for change, _ in found])
    for change, _ in found:
        _require_same_kind(change.name, base[change.name], change.dtype, change.shape)
    return found


def _changes_in(patch: bytes) -> list[tuple[_Change, list[memoryview]]]:
    changes, payload = _opened(patch)
    found = []
    start = 0
    for change in changes:
        sections = []
        for num_bytes in change.section_bytes:
            sections.append(payload[start : start + num_bytes])
            start += num_bytes
        if start > len(payload):
            raise WeightsError(f"a weights patch ends inside tensor {change.name!r}")
        found.append((change, sections))
    if start < len(payload):
        raise WeightsError(f"a weights patch has {len(payload) - start} bytes after its last tensor")
    return found


def _mapped(work: Callable[[S], T], items: Iterable[S], threads: int) -> Iterable[T]:
    """What `work` returns for each item, in their order."""
    if threads == 1:
        return map(work, items)
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, items))


# ---- one tensor


def _encoded(name: str, base: Tensor, new: Tensor, digest: str | None) -> tuple[_Change, list[bytes | memoryview]]:
    raw = raw_bytes(new)
    words, old = _as_words(raw, new), _as_words(raw_bytes(base), new)
    most = int(_DENSE_FROM * words.size)
    changed = _changed(words, old, most)
    change = _Change(
        name=name, dtype=dtype_name(new), shape=tuple(new.shape), digest=digest or bytes_digest(raw), encoding="same"
    )
    if changed is not None and changed.size == 0:
        return change, []
    if changed is not None:
        gaps = gaps_of(changed)
        steps, far = _steps_of(words[changed], old[changed])
        compress = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress
        sections = [compress(plane.data) for plane in (*byte_planes(gaps), steps, *byte_planes(far))]
        if sum(map(len, sections)) < raw.nbytes:
            of_sparse: dict[str, Any] = {
                "encoding": "sparse",
                "num_changes": changed.size,
                "num_gaps": gaps.size,
                "num_far": far.size,
                "section_bytes": tuple(map(len, sections)),
            }
            return change.model_copy(update=of_sparse), list(sections)
    of_dense = {"encoding": "dense", "num_changes": words.size, "section_bytes": (raw.nbytes,)}
    return change.model_copy(update=of_dense), [raw.data]


def _patched(base: Tensor, change: _Change, sections: Sequence[memoryview]) -> Tensor:
    """One tensor with its change applied."""
    raw = raw_bytes(base)
    if change.encoding != "same":
        raw = raw.copy()
    _change_raw(raw, base, change, sections)
    if bytes_digest(raw) == change.digest:
        return base if change.encoding == "same" else tensor_from_raw(raw, base.dtype, base.shape).to(base.device)
    if bytes_digest(raw_bytes(base)) == change.digest:
        # Applied before: steps would be taken twice.
        return base
    raise WeightsError(
        f"tensor {change.name!r} does not match its digest after the patch, made for another base; "
        "fetch a full snapshot"
    )


def _change_raw(raw: Bytes, tensor: Tensor, change: _Change, sections: Sequence[memoryview]) -> None:
    """Apply a change to the bytes of a tensor, in place."""
    words = _as_words(raw, tensor)
    if change.encoding == "dense":
        _require_dense(change, sections, words)
        words[:] = np.frombuffer(sections[0], dtype=words.dtype)
    elif change.encoding == "sparse":
        _change_words(words, change, sections)
    elif sections or change.num_changes:
        raise WeightsError(f"tensor {change.name!r} does not change, but the patch stores something of it")


def _change_words(words: Words, change: _Change, sections: Sequence[memoryview]) -> None:
    """Overwrite the words that a sparse change names, in place."""
    if len(sections) != 3 + words.itemsize:
        raise WeightsError(f"tensor {change.name!r}: {len(sections)} sections; fetch the patch again")
    indices = _indices(change, sections, words.size)
    steps = _plane(change, sections[2], change.num_changes).view(np.int8)
    is_far = steps == _FAR
    if int(np.count_nonzero(is_far)) != change.num_far:
        raise WeightsError(f"tensor {change.name!r}: the patch has bits of {change.num_far} words, its steps say other")
    planes = [_plane(change, section, change.num_far) for section in sections[3:]]
    words[indices] += steps.astype(words.dtype)
    words[indices[is_far]] = joined_planes(planes, words.dtype.str)


def _indices(change: _Change, sections: Sequence[memoryview], num_words: int) -> NDArray[np.int64]:
    """The words that a sparse change of a tensor of so many names."""
    is_possible = 0 < change.num_changes <= num_words and change.num_far <= change.num_changes
    most_gaps = change.num_changes + num_words // LONG_GAP
    if not is_possible or len(sections) < 3 or change.num_gaps > most_gaps:
        raise WeightsError(
            f"tensor {change.name!r}: {len(sections)} sections for {change.num_changes} of {num_words} words; "
            "fetch the patch again"
        )
    gaps = joined_planes([_plane(change, section, change.num_gaps) for section in sections[:2]], "<u2")
    indices = indices_of(gaps)
    if len(indices) != change.num_changes or indices[-1] >= num_words:
        raise WeightsError(
            f"tensor {change.name!r}: {len(indices)} indices up to {indices[-1] if len(indices) else 'none'}, "
            f"it has {num_words} words and the patch {change.num_changes} changes"
        )
    return indices


def _require_dense(change: _Change, sections: Sequence[memoryview], words: Words) -> None:
    found = [section.nbytes for section in sections]
    if found != [words.nbytes] or change.num_changes != words.size or not words.size:
        raise WeightsError(f"tensor {change.name!r} has {words.nbytes} bytes, the patch stores {found}")


def _changed(new: Words, old: Words, most: int) -> NDArray[np.int64] | None:
    """Indices of the words that differ, ascending; compared 8 bytes at a time, most of which are equal.

    Args:
        most: None is returned as soon as there are more; small tensors may have a few all the same.
    """
    num_whole = new.nbytes // 8 * 8 // new.itemsize
    per_block = max(1, 8 // new.itemsize)
    wide_new, wide_old = new[:num_whole].view("<u8"), old[:num_whole].view("<u8")
    differs = np.empty(min(len(wide_new), _TILE_BYTES // 8) or 1, dtype=np.bool_)
    found = []
    for start in range(0, len(wide_new), len(differs)):
        one, other = wide_new[start : start + len(differs)], wide_old[start : start + len(differs)]
        blocks = np.flatnonzero(np.not_equal(one, other, out=differs[: len(one)]))
        within = np.flatnonzero((one[blocks] ^ other[blocks]).view(new.dtype))
        found.append((blocks[within // per_block] + start) * per_block + within % per_block)
        if sum(map(len, found)) > max(most, _FEW):
            return None
    found.append(num_whole + np.flatnonzero(new[num_whole:] != old[num_whole:]))
    indices: NDArray[np.int64] = np.concatenate(found)
    return indices


def _steps_of(new: Words, old: Words) -> tuple[NDArray[np.int8], Words]:
    """How far each word moves, and the new bits of those that move further than a step can tell."""
    moved = new - old
    # Lifted, so that one comparison of unsigned numbers finds steps of -127 to 127, whatever wraps around.
    is_near = moved + new.dtype.type(_MAX_STEP) <= 2 * _MAX_STEP
    return np.where(is_near, moved.astype(np.int8), np.int8(_FAR)), new[~is_near]


def _plane(change: _Change, section: memoryview, num_bytes: int) -> Bytes:
    """A decompressed plane of exactly so many bytes; raises WeightsError before it takes more room."""
    try:
        # What a frame says of itself is allocated before anything else is looked at.
        if zstandard.frame_content_size(section) == num_bytes:
            plane = np.frombuffer(
                zstandard.ZstdDecompressor().decompress(section, allow_extra_data=False), dtype=np.uint8
            )
            if len(plane) == num_bytes:
                return plane
    except zstandard.ZstdError as error:
        raise WeightsError(f"tensor {change.name!r}: a section of its patch is no zstd frame: {error}") from None
    raise WeightsError(f"tensor {change.name!r}: a section of its patch does not hold {num_bytes} bytes")


# ---- the whole


def _opened(patch: bytes) -> tuple[tuple[_Change, ...], memoryview]:
    """The header and the payload of a patch whose digest holds."""
    start = _PREFIX.size + _DIGEST_BYTES
    if len(patch) < start:
        raise WeightsError(f"a weights patch has at least {start} bytes, found {len(patch)}; fetch it again")
    prefix = patch[: _PREFIX.size]
    magic, version, header_bytes = _PREFIX.unpack(prefix)
    if magic != _MAGIC or version != _FORMAT_VERSION:
        raise WeightsError(
            f"found a patch that begins with {magic!r}, format {version}; this side reads {_MAGIC!r}, "
            f"format {_FORMAT_VERSION}: upgrade the older side"
        )
    content = memoryview(patch)[start:]
    if _digest_of(prefix, content) != patch[_PREFIX.size : start]:
        raise WeightsError("a weights patch does not match its digest; fetch it again")
    try:
        header = content[:header_bytes]
        if not 0 <= zstandard.frame_content_size(header) <= _MAX_HEADER_BYTES:
            raise WeightsError(f"the header of a weights patch is over {_MAX_HEADER_BYTES} bytes, or has no length")
        changes = _CHANGES.validate_json(zstandard.ZstdDecompressor().decompress(header))
    except (ValidationError, zstandard.ZstdError) as error:
        raise WeightsError(f"malformed header of a weights patch: {error}") from error
    return changes, content[header_bytes:]


def _as_words(raw: Bytes, tensor: Tensor) -> Words:
    words: Words = raw.view(f"<u{min(tensor.element_size(), 8)}")
    return words


def _digest_of(*parts: bytes | memoryview) -> bytes:
    state = xxhash.xxh3_128()
    for part in parts:
        state.update(part)
    digest: bytes = state.digest()
    return digest


def _require_same_names(base: dict[str, Tensor], names: Sequence[str]) -> None:
    if len(names) != len(base) or set(names) != set(base):
        differing = sorted(set(names) ^ set(base))[:3]
        raise WeightsError(
            f"a patch needs the same tensors on both sides: {len(base)} in the base, {len(names)} beside it, "
            f"differing in {differing}; publish a full snapshot"
        )


def _require_same_kind(name: str, base: Tensor, dtype: str, shape: tuple[int, ...]) -> None:
    if dtype != dtype_name(base) or shape != tuple(base.shape):
        raise WeightsError(
            f"tensor {name!r} is {dtype_name(base)} {tuple(base.shape)} in the base, {dtype} {shape} beside; "
            "publish a full snapshot"
        )
