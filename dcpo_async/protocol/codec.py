"""Envelopes to frames and back: a msgpack header, then raw arrays.

Two versions of the protocol are spoken while a fleet is upgraded, machine by machine, the learner first: with each
actor it speaks as that actor does, in this release's version or in the one before. Actors speak their own with the
learner. Relays are asked in the version before, since whoever asks does not know of which release they are, and take
one more, since those that ask may be of the release before theirs.

Whoever changes messages raises PROTOCOL_VERSION, writes below what is new, and records the shapes of all messages
(`tests/protocol/test_window.py` fails until it is done, and says how).
"""

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgpack
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dcpo_async.errors import MalformedError, ProtocolError, VersionMismatchError
from dcpo_async.limits import (
    GROUP_HEADER_BYTES,
    HELD_HEADER_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_PEERS,
    MAX_TEXT,
    SMALL_HEADER_BYTES,
    quoted,
)
from dcpo_async.protocol import messages, trainer_messages, weight_messages
from dcpo_async.protocol.messages import PROTOCOL_VERSION, Array, Envelope, Message
from dcpo_async.records import Count

PREVIOUS_VERSION = 7
SPOKEN_WITH_ACTORS = (PROTOCOL_VERSION, PREVIOUS_VERSION)
SPOKEN_BY_RELAYS = (*SPOKEN_WITH_ACTORS, PREVIOUS_VERSION - 1)
ADDED: Mapping[str, frozenset[str]] = {"hello": frozenset({"release"}), "welcome": frozenset({"release"})}
"""By kind of message, the words new to the version before. Each has a default, which holds for its peers."""

MAX_LIST = 1 << 20
"""Samples of a shard; the lists of every other kind are far shorter."""
MAX_WORDS_OF_A_MAP = 1 << 10
_START_BYTES = 1 << 10
"""The words before a message's body fit in these."""

MESSAGE_TYPES: Mapping[str, type[Message]] = {
    kind.kind: kind
    for module in (messages, weight_messages, trainer_messages)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Message) and kind is not Message
}
HEADER_BYTES: Mapping[str, int] = {
    "hello": HELD_HEADER_BYTES,
    "heartbeat": HELD_HEADER_BYTES,
    "group": GROUP_HEADER_BYTES,
    "lease": 16 * MAX_TEXT,
    "manifest": 80 << 20,
    "keys": 256 * MAX_PEERS,
    "node_welcome": 8 * MAX_TEXT,
    "shard": MAX_MESSAGE_BYTES,
    "old_logprobs": MAX_MESSAGE_BYTES,
}
"""Of the kinds that need more than SMALL_HEADER_BYTES; those of ranks and learner are for those who trust them."""
Frame = bytes | memoryview


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    v: int
    run: str = Field(max_length=200)
    inc: Count
    kind: str
    body: dict[str, Any]
    arrays: tuple[tuple[str, Count], ...]


def encode(envelope: Envelope, version: int = PROTOCOL_VERSION) -> list[Frame]:
    """The frames of an envelope; arrays are not copied and must not change until they are sent.

    Args:
        envelope: its arrays are one-dimensional, named and typed as `message.array_dtypes` says.
        version: of the protocol that the receiver speaks, one of SPOKEN_WITH_ACTORS.

    Raises:
        ProtocolError: an array is missing, unknown, or of another type or shape; a number is too large.
    """
    message = envelope.message
    if envelope.arrays.keys() != message.array_dtypes.keys():
        raise ProtocolError(
            f"{message.kind} has arrays {list(envelope.arrays)}, it must have {list(message.array_dtypes)}"
        )
    frames = [_raw(message, name, envelope.arrays[name]) for name in message.array_dtypes]
    header = {
        "v": version,
        "run": envelope.run_id,
        "inc": envelope.incarnation,
        "kind": message.kind,
        "body": _as_known_to(version, message),
        "arrays": [(name, envelope.arrays[name].size) for name in message.array_dtypes],
    }
    try:
        return [msgpack.packb(header), *frames]
    except (OverflowError, ValueError) as error:
        raise ProtocolError(f"{message.kind} cannot be packed: {error}") from None


def decode(
    frames: Sequence[Frame],
    max_message_bytes: int,
    max_header_bytes: int = MAX_MESSAGE_BYTES,
    versions: Sequence[int] = (PROTOCOL_VERSION,),
) -> Envelope:
    """The envelope in these frames; its arrays are read-only views of them.

    Args:
        frames: bytes or anything with the buffer protocol.
        max_message_bytes: largest allowed sum of all frames.
        max_header_bytes: largest allowed header, whatever its kind; HEADER_BYTES of its kind is never exceeded either.
        versions: of the protocol that are understood.

    Raises:
        VersionMismatchError: the peer speaks another protocol version, whatever else is in the message.
        MalformedError: body or arrays are not what the kind of message has.
        ProtocolError: anything else that the protocol does not allow; the message says what was found.
    """
    views = [memoryview(frame) for frame in frames]
    num_bytes = sum(view.nbytes for view in views)
    if num_bytes > max_message_bytes:
        raise ProtocolError(f"a message of {num_bytes} bytes is over the limit of {max_message_bytes}")
    if not views:
        raise ProtocolError("a message without frames; the first must hold the header")
    header = _header(views[0], max_header_bytes, versions)
    message_type = MESSAGE_TYPES.get(header.kind)
    if message_type is None:
        raise ProtocolError(f"unknown kind of message {quoted(header.kind)!r}; known are {[*MESSAGE_TYPES]}")
    try:
        arrays = dict(_arrays(message_type, header, views[1:]))
        return Envelope(message_type.model_validate(header.body), arrays, header.run, header.inc, header.v)
    except (ValidationError, ProtocolError) as error:
        problem = _first_problem(error) if isinstance(error, ValidationError) else str(error)
        raise MalformedError(f"{header.kind}: {problem}", kind=header.kind, lease=_lease(header)) from None


def _lease(header: _Header) -> tuple[int, int] | None:
    """The lease that a malformed group answers, so that it can be told apart from the actor's others."""
    name = header.body.get("position"), header.body.get("attempt")
    is_whole = header.kind == "group" and all(type(part) is int and 0 <= part < 1 << 63 for part in name)
    return name if is_whole else None  # type: ignore[return-value]


def _as_known_to(version: int, message: Message) -> dict[str, Any]:
    """The words of a message, without those that a version of the protocol does not have."""
    return message.model_dump(exclude=None if version == PROTOCOL_VERSION else set(ADDED.get(message.kind, ())))


def _raw(message: Message, name: str, array: Array) -> memoryview:
    dtype = message.array_dtypes[name]
    if array.dtype != np.dtype(dtype) or array.ndim != 1:
        raise ProtocolError(
            f"{message.kind}: array {name} is {array.dtype.str} {list(array.shape)}, it must be {dtype} [n]"
        )
    return np.ascontiguousarray(array).view(np.uint8).data


def _header(frame: memoryview, max_bytes: int, versions: Sequence[int]) -> _Header:
    _require_small(frame, max_bytes)
    try:
        # Tuples in place of lists: a strict model takes nothing else for a tuple.
        words = msgpack.unpackb(
            frame, use_list=False, raw=False, max_ext_len=0, max_array_len=MAX_LIST, max_map_len=MAX_WORDS_OF_A_MAP
        )
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"a header that is not msgpack: {quoted(error) or type(error).__name__}") from None
    if not isinstance(words, dict) or type(words.get("v")) is not int:
        raise ProtocolError("a header without the protocol version v: the peer is not dcpo-async")
    if words["v"] not in versions:
        raise _version_mismatch(words["v"], words.get("kind"), versions)
    try:
        return _Header.model_validate(words)
    except ValidationError as error:
        raise ProtocolError(f"header: {_first_problem(error)}") from None


def _require_small(frame: memoryview, max_bytes: int) -> None:
    """Refuse a header that is longer than its kind's may be before it is unpacked, which takes ten times its size."""
    if frame.nbytes <= SMALL_HEADER_BYTES:
        return
    kind = _kind_of(frame[:_START_BYTES])
    limit = min(max_bytes, HEADER_BYTES.get(kind, SMALL_HEADER_BYTES))
    if frame.nbytes > limit:
        raise ProtocolError(f"a header of {frame.nbytes} bytes is over the limit of {limit} for {quoted(kind)!r}")


def _kind_of(start: memoryview) -> str:
    """The kind of the message whose header starts so; empty where it does not stand before the body."""
    kind = _at_start(start, "kind")
    return kind if isinstance(kind, str) else ""


def spoken_version(frames: Sequence[Frame]) -> int:
    """The version that a message says to be of, however little else of it can be read; 0 where it does not say so."""
    version = _at_start(memoryview(frames[0])[:_START_BYTES], "v") if frames else None
    return version if type(version) is int else 0


def _at_start(start: memoryview, word: str) -> object:
    """What a header says that starts so; None where this does not stand before the body."""
    unpacker = msgpack.Unpacker(use_list=False, raw=False, max_ext_len=0)
    unpacker.feed(start)
    try:
        for _ in range(unpacker.read_map_header()):
            key, value = unpacker.unpack(), unpacker.unpack()
            if key == word:
                found: object = value
                return found
    except (ValueError, RecursionError, msgpack.UnpackException):
        pass
    return None


def _version_mismatch(peer_version: int, kind: object, versions: Sequence[int]) -> VersionMismatchError:
    which = "on the peer" if peer_version < min(versions) else "on this side"
    return VersionMismatchError(
        f"the peer speaks protocol version {peer_version}, this side speaks {' and '.join(map(str, versions))}: "
        f"upgrade dcpo-async {which}",
        peer_version=peer_version,
        kind=kind if isinstance(kind, str) else "",
    )


def _arrays(message_type: type[Message], header: _Header, frames: Sequence[memoryview]) -> Iterator[tuple[str, Array]]:
    names, allowed = [name for name, _ in header.arrays], list(message_type.array_dtypes)
    if names != allowed:
        raise ProtocolError(f"has the arrays {quoted(reprlib.repr(names))}, it must have {allowed}")
    if len(frames) != len(names):
        raise ProtocolError(f"has {len(frames)} frames of arrays, it must have {len(names)}")
    for (name, count), frame in zip(header.arrays, frames, strict=True):
        dtype = np.dtype(message_type.array_dtypes[name])
        if frame.nbytes != count * dtype.itemsize:
            raise ProtocolError(
                f"array {name} has {frame.nbytes} bytes, "
                f"{count} numbers of {dtype.itemsize} bytes need {count * dtype.itemsize}"
            )
        yield name, _view(frame, dtype)


def _view(frame: memoryview, dtype: np.dtype[Any]) -> Array:
    array: Array = np.frombuffer(frame, dtype=dtype)
    if not array.flags.aligned:
        # ZeroMQ may hand out a frame at any address; some readers of numbers need an aligned one.
        array = array.copy()
    array.flags.writeable = False
    return array


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    # What lacks a field is shown by none of its other fields: one of them may be a secret.
    found = "" if problem["type"] == "missing" else f", found {reprlib.repr(problem['input'])}"
    return f"{quoted(where)}: {problem['msg']}{quoted(found)}"
