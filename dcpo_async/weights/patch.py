"""Sparse patches: the elements of a model's weights that changed between two versions, bit for bit.

Layout, little-endian: magic, format version, length of the header, digest of all else; a JSON header; then
for each tensor in it the flat indices of its changed elements and their new bits, or all of its bits.
"""

import struct
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from dcpo_async.errors import WeightsError
from dcpo_async.weights.manifest import Digest
from dcpo_async.weights.raw import bytes_digest, dtype_name, raw_bytes, tensor_from_raw

_MAGIC = b"dcpopach"
_FORMAT_VERSION = 1
_PREFIX = struct.Struct("<8sIQ")  # magic, format version, bytes of the JSON header
_DIGEST_BYTES = 16

Words = NDArray[np.unsignedinteger[Any]]


class _Change(BaseModel):
    """How one tensor changes.

    Attributes:
        digest: of the tensor's bytes once the change is applied.
        num_words: words that the patch stores; a word is an element, or 8 bytes of a larger one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    name: str
    dtype: str
    shape: tuple[Annotated[int, Field(ge=0)], ...]
    digest: Digest
    encoding: Literal["sparse", "full"]
    num_words: Annotated[int, Field(ge=0)]


_CHANGES = TypeAdapter(tuple[_Change, ...])


def encode_patch(base: dict[str, Tensor], new: dict[str, Tensor]) -> bytes:
    """The patch that turns `base` into `new`; raw bits are compared, so -0.0 and NaN payloads survive.

    Both hold the same names with the same shapes and dtypes, of any kind. A tensor is stored whole where
    listing its changes would take as much room: for bfloat16, from one change in three elements on.
    Raises WeightsError where the two differ in a name, shape or dtype.
    """
    _require_same_names(base, list(new))
    changes: list[_Change] = []
    sections: list[memoryview] = []
    for name, tensor in new.items():
        _require_same_kind(name, base[name], dtype_name(tensor), tuple(tensor.shape))
        raw = raw_bytes(tensor)
        words = _as_words(raw, tensor)
        changed = np.flatnonzero(_as_words(raw_bytes(base[name]), tensor) != words)
        index_type = _index_type(words.size)
        is_sparse = len(changed) * (index_type.itemsize + words.itemsize) < words.nbytes
        stored = words[changed] if is_sparse else words
        if is_sparse:
            sections.append(changed.astype(index_type).data)
        sections.append(stored.data)
        changes.append(
            _Change(
                name=name,
                dtype=dtype_name(tensor),
                shape=tuple(tensor.shape),
                digest=bytes_digest(raw),
                encoding="sparse" if is_sparse else "full",
                num_words=stored.size,
            )
        )
    header = _CHANGES.dump_json(tuple(changes))
    prefix = _PREFIX.pack(_MAGIC, _FORMAT_VERSION, len(header))
    return b"".join([prefix, _digest_of(prefix, header, *sections), header, *sections])


def apply_patch(base: dict[str, Tensor], patch: bytes) -> dict[str, Tensor]:
    """The weights that the patch leads to; elements are overwritten, so applying it twice changes nothing.

    `base` is left as it is; tensors that do not change are shared with it. Raises WeightsError when the
    patch is malformed, when names, shapes or dtypes differ, and when `base` is not what the patch was made
    for (the digest of a resulting tensor differs).
    """
    changes, payload = _opened(patch)
    _require_same_names(base, [change.name for change in changes])
    patched: dict[str, Tensor] = {}
    start = 0
    for change in changes:
        _require_same_kind(change.name, base[change.name], change.dtype, change.shape)
        end = start + _section_bytes(change, base[change.name])
        if end > len(payload):
            raise WeightsError(f"a weights patch ends inside tensor {change.name!r}")
        patched[change.name] = _patched(base[change.name], change, payload[start:end])
        start = end
    if start < len(payload):
        raise WeightsError(f"a weights patch has {len(payload) - start} bytes after its last tensor")
    return {name: patched[name] for name in base}


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
        changes = _CHANGES.validate_json(bytes(content[:header_bytes]))
    except ValidationError as error:
        raise WeightsError(f"malformed header of a weights patch: {error}") from error
    return changes, content[header_bytes:]


def _patched(base: Tensor, change: _Change, section: memoryview) -> Tensor:
    """One tensor with its change applied; `section` holds the indices, if any, and the new words."""
    raw = raw_bytes(base)
    if change.num_words > 0:
        raw = raw.copy()
        words = _as_words(raw, base)
        num_index_bytes = len(section) - change.num_words * words.itemsize
        fresh = np.frombuffer(section[num_index_bytes:], dtype=words.dtype)
        if change.encoding == "full":
            words[:] = fresh
        else:
            words[_indices(change, section[:num_index_bytes], words.size)] = fresh
    if bytes_digest(raw) != change.digest:
        raise WeightsError(
            f"tensor {change.name!r} does not match its digest after the patch, made for another base; "
            "fetch a full snapshot"
        )
    return base if change.num_words == 0 else tensor_from_raw(raw, base.dtype, base.shape).to(base.device)


def _section_bytes(change: _Change, base: Tensor) -> int:
    """Bytes of a tensor's section in the payload; raises WeightsError for an impossible number of words."""
    word_bytes = min(base.element_size(), 8)
    total = base.numel() * base.element_size() // word_bytes
    if change.num_words > total or (change.encoding == "full" and change.num_words < total):
        raise WeightsError(f"tensor {change.name!r} has {total} words, the patch stores {change.num_words}")
    index_bytes = _index_type(total).itemsize if change.encoding == "sparse" else 0
    return change.num_words * (index_bytes + word_bytes)


def _indices(change: _Change, section: memoryview, num_words: int) -> Words:
    indices: Words = np.frombuffer(section, dtype=_index_type(num_words))
    if indices[-1] >= num_words or np.any(indices[1:] <= indices[:-1]):
        raise WeightsError(f"tensor {change.name!r}: patch indices must rise and stay under {num_words}")
    return indices


def _as_words(raw: NDArray[np.uint8], tensor: Tensor) -> Words:
    words: Words = raw.view(f"<u{min(tensor.element_size(), 8)}")
    return words


def _index_type(num_words: int) -> np.dtype[Any]:
    return np.dtype("<u4" if num_words <= 1 << 32 else "<u8")


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
