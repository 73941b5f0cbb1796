"""Forged messages, from a seed: recordings of honest ones with changes, wrong words in the right places, and noise."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import msgpack

from dcpo_async.protocol.codec import MESSAGE_TYPES
from dcpo_async.protocol.messages import PROTOCOL_VERSION

Frames = list[bytes]
WORDS: Sequence[Any] = (
    -1, 0, 1, 1 << 31, (1 << 63) - 1, 1 << 63, 0.5, float("nan"), float("inf"), True, None, "", "x", "a\nb\x1b[2J",
    "y" * 5000, b"\xff", [], [[]], [[1, 1]], [[1, 1]] * 300, {}, {"a": 1},
)  # fmt: skip


def forged(recorded: Sequence[Frames], seed: int) -> Iterator[Frames]:
    """Without end: frames of messages that no honest peer sends, or not at that time.

    Args:
        recorded: frames of honest messages, of which most are made.
        seed: the same one gives the same messages.
    """
    draw = random.Random(seed)
    ways = (_with_another_word, _with_another_word, _of_another_kind, _with_changed_bytes, _with_frames_moved, _noise)
    while True:
        yield draw.choice(ways)(list(draw.choice(recorded)), draw)


def _with_another_word(frames: Frames, draw: random.Random) -> Frames:
    """A word of header or body is another, missing, or new."""
    header = msgpack.unpackb(frames[0])
    where = header["body"] if header["body"] and draw.random() < 0.8 else header
    key = draw.choice([*where, "surprise"])
    if draw.random() < 0.15:
        where.pop(key, None)
    else:
        where[key] = draw.choice(WORDS)
    return _packed(header, frames)


def _of_another_kind(frames: Frames, draw: random.Random) -> Frames:
    header = msgpack.unpackb(frames[0])
    header["kind"] = draw.choice([*MESSAGE_TYPES, "pickle"])
    header["inc"] = draw.choice((0, 1, 1, 1, 7))
    return _packed(header, frames)


def _with_changed_bytes(frames: Frames, draw: random.Random) -> Frames:
    which = draw.randrange(len(frames))
    frame = bytearray(frames[which])
    for _ in range(draw.randint(1, 4)):
        at = draw.randint(0, len(frame))
        frame[at : at + draw.randint(0, 3)] = draw.randbytes(draw.randint(0, 3))
    frames[which] = bytes(frame)
    return frames


def _with_frames_moved(frames: Frames, draw: random.Random) -> Frames:
    more = [draw.randbytes(draw.choice((0, 4, 64))) for _ in range(draw.randint(0, 3))]
    frames += more
    draw.shuffle(frames)
    return frames[: draw.randint(0, len(frames))] or [b""]


def _noise(_: Frames, draw: random.Random) -> Frames:
    if draw.random() < 0.5:
        return [draw.randbytes(draw.randint(0, 200)) for _ in range(draw.randint(1, 4))]
    header = {"v": PROTOCOL_VERSION, "run": "", "inc": 1, "kind": draw.choice([*MESSAGE_TYPES]), "arrays": []}
    body = {draw.choice(("position", "attempt", "held", "step", "rank")): draw.choice(WORDS) for _ in range(3)}
    return _packed({**header, "body": body}, [b""])


def _packed(header: dict[Any, Any], frames: Frames) -> Frames:
    try:
        return [msgpack.packb(header), *frames[1:]]
    except (OverflowError, ValueError):
        return [b"\xc1", *frames[1:]]
