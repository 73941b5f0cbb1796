"""What one peer may say at most, how its words are shown to people, and how often it is worth a line in the log."""

import logging
import math
import time
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, FailFast, Field

from dcpo_async.records import Count, LeaseName

T = TypeVar("T")

MAX_WORDS = 200
"""Characters of a peer's own words that are shown in one place."""
MAX_SENTENCE = 1_000
MAX_GROUP_SIZE = 1 << 10
MAX_SEGMENTS = 1 << 8
"""Weights versions that one response may have been sampled from."""
MAX_GROUPS_IN_FLIGHT = 1 << 10
OPEN_SHARE = 4
"""Open groups, as a multiple of groups_in_flight: a group is open as long as its longest response runs, which for the
long-tailed lengths of reasoning is some four times the mean."""
MAX_HELD = 2 * OPEN_SHARE * MAX_GROUPS_IN_FLIGHT
"""Leases that a session can name: those it works on, and those whose groups wait for their acknowledgement."""
MAX_TEXT = 1 << 20
"""Characters of one response, or of a reference answer."""
MAX_REWARD = 1_000.0
"""No reward is further from 0: nine million of them, squared, are counted without rounding."""
NANO = 1_000_000_000
MAX_MESSAGE_BYTES = 1 << 30
"""No setting allows more, so that whoever has heard of none yet can go by it."""
MAX_CHUNK_BYTES = 64 << 20
"""Eight times as much may be asked for at once, in stretches of which 256 fit a peer's queue."""
SMALL_HEADER_BYTES = 64 << 10
"""Of a message whose kind does not say otherwise."""
MESSAGES_PER_SECOND, REQUESTS_PER_SECOND = 500.0, 5_000.0
"""Of one connection, to the coordinator and to a weight server; what is more is not looked at."""
GROUP_HEADER_BYTES = 1 << 20
"""Numbers and reasons; tokens and texts travel beside the header."""
HELD_HEADER_BYTES = 32 * MAX_HELD
MAX_SOURCES = 64
"""Of one run; what a welcome says of each has to fit its header."""
MAX_PEERS = 1 << 14
"""Sessions, and keys that a relay is told of."""
MAX_REFUSALS = 20
"""That are told of; each with all its words at most."""
MAX_LINES, LINE_SECONDS, MAX_LINE_KINDS = 50, 10.0, 1 << 12


def quoted(words: object, max_chars: int = MAX_WORDS) -> str:
    r"""A peer's words, for a line that people read: cut, and without characters that would change what is around them.

    `quoted("a\nb")` is `a\nb` in four characters, and bytes are read as UTF-8 as far as they can be.
    """
    text = bytes(words).decode("utf-8", "backslashreplace") if isinstance(words, bytes | bytearray) else str(words)
    if len(text) <= max_chars and text.isprintable():
        return text
    shown = "".join(char if char.isprintable() else _escaped(char) for char in text[:max_chars])
    return shown if len(shown) <= max_chars and len(text) <= max_chars else f"{shown[: max_chars - 1]}…"


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def _shown(max_chars: int) -> Any:
    return BeforeValidator(lambda words: quoted(words, max_chars) if isinstance(words, str) else words)


Sentence = Annotated[str, _shown(MAX_SENTENCE), Field(max_length=MAX_SENTENCE)]
"""For people: whatever is put in, it can be sent, and be shown."""
ShownName = Annotated[str, Field(min_length=1, max_length=MAX_WORDS), _shown(MAX_WORDS)]
"""What a peer calls itself."""
Release = Annotated[str, Field(max_length=MAX_WORDS), _shown(MAX_WORDS)]
"""Of dcpo-async; empty where a peer's version of the protocol does not tell it."""
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Name = Annotated[str, Field(min_length=1, max_length=MAX_WORDS)]
SourceName = Annotated[str, Field(max_length=MAX_WORDS)]
"""Of a source of problems; empty where a run has one."""
PublicKey = Annotated[str, Field(pattern=r"^[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}$")]
"""A CURVE key in Z85."""
Seconds = Annotated[float, Field(ge=0, le=1e9)]
Column = Annotated[tuple[T, ...], Field(max_length=MAX_GROUP_SIZE), FailFast()]
"""An entry for each response of a group."""
Segments = Annotated[tuple[tuple[Count, Count], ...], Field(max_length=MAX_SEGMENTS), FailFast()]
Credit = Annotated[int, Field(ge=0, le=MAX_HELD)]
ChunkBytes = Annotated[int, Field(gt=0, le=MAX_CHUNK_BYTES)]
HeldTokens = Annotated[tuple[Count, ...], Field(max_length=MAX_HELD), FailFast()]
Held = Annotated[tuple[LeaseName, ...], Field(max_length=MAX_HELD), FailFast()]


def largest_group_bytes(group_size: int, max_response_tokens: int) -> int:
    """Bytes that an honest group may take on the wire: an id and a log-prob for each token, texts, and a margin.

    A token may stand for 256 characters (runs of spaces and dashes do), a text has at most MAX_TEXT of them, and
    a character takes up to 4 bytes. `largest_group_bytes(16, 3072)` is 53 MB, of which a usual one takes 1.
    """
    text_bytes = 4 * min(MAX_TEXT, 256 * max_response_tokens)
    return group_size * (8 * max_response_tokens + text_bytes) + GROUP_HEADER_BYTES + SMALL_HEADER_BYTES


def rounded_reward(reward: float) -> float:
    """The float nearest to a finite reward's nearest whole billionth, which counting it again changes no more."""
    return round(reward * NANO) / NANO


class LineLimit(logging.Filter):
    """Lets through so many lines of a kind in a while: whoever provokes one ten thousand times a second fills no disk.

    The first line after a while says how many were left out. Lines are of a kind by their unformatted text.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._kinds: dict[object, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is written."""
        now, kind = self._clock(), record.msg
        began, count = self._kinds.get(kind, (now, 0))
        if now - began >= LINE_SECONDS:
            left_out = max(0, count - MAX_LINES)
            if left_out:
                record.args, record.msg = (), f"{record.getMessage()} (and {left_out} more lines like an earlier one)"
            began, count = now, 0
        if kind in self._kinds or len(self._kinds) < MAX_LINE_KINDS:
            self._kinds[kind] = (began, count + 1)
        return count < MAX_LINES


class Repeats:
    """Says of what happens over and over when it is worth a line: at first, and then once in a while with its number.

    Args:
        seconds: between two lines of one subject.
    """

    def __init__(self, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._subjects: dict[str, tuple[float, int]] = {}

    def count(self, subject: str) -> int:
        """How often it has happened since its last line, this time included; 0 where no line is due."""
        now = self._clock()
        told_at, count = self._subjects.pop(subject, (-math.inf, 0))
        is_due = now - told_at >= self._seconds
        self._subjects[subject] = (now, 0) if is_due else (told_at, count + 1)
        if len(self._subjects) > MAX_LINE_KINDS:
            del self._subjects[next(iter(self._subjects))]
        return count + 1 if is_due else 0


class Refusals:
    """Peers that were turned away, by what was said of it, the newest MAX_REFUSALS."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._noted: dict[str, tuple[float, int]] = {}

    def note(self, what: str) -> None:
        """It happened, once more."""
        _, times = self._noted.pop(what, (0.0, 0))
        self._noted[what] = self._clock(), times + 1
        if len(self._noted) > MAX_REFUSALS:
            del self._noted[next(iter(self._noted))]

    def newest(self) -> list[dict[str, Any]]:
        """What, how many `times`, and the last one how many `seconds_ago`; the newest last."""
        now = self._clock()
        return [
            {"what": what, "times": times, "seconds_ago": round(now - at, 1)}
            for what, (at, times) in self._noted.items()
        ]


def plain_log(who: str = "") -> None:
    """Log to standard error as all processes do: date with its zone, level, and who says it."""
    form = f"%(asctime)s %(levelname)s {who}%(name)s %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, datefmt="%Y-%m-%d %H:%M:%S%z")


def limited_log() -> None:
    """The same, no more than `LineLimit` lets through."""
    plain_log()
    for handler in logging.getLogger().handlers:
        handler.addFilter(LineLimit())
