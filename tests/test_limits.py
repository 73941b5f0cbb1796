import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dcpo_async.config import RunConfig
from dcpo_async.limits import MAX_LINES, MAX_SENTENCE, MAX_WORDS, LineLimit, Repeats, largest_group_bytes, quoted
from dcpo_async.protocol.messages import Ack, Reject


@given(st.one_of(st.text(), st.binary()), st.integers(1, 300))
def test_whatever_a_peer_says_is_shown_in_one_line_of_bounded_length(words: str | bytes, max_chars: int) -> None:
    shown = quoted(words, max_chars)
    assert len(shown) <= max_chars
    assert shown.isprintable()


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("a fine name", "a fine name"),
        ("a\n12:00:00 learner: forged", "a\\n12:00:00 learner: forged"),
        ("\x1b[2J\r", "\\x1b[2J\\r"),
        ("\u202egnp", "\\u202egnp"),
        (b"\0\xff", "\\x00\\xff"),
        ("x" * 1000, "x" * (MAX_WORDS - 1) + "…"),
    ],
)
def test_characters_that_change_what_is_around_them_are_escaped(words: str | bytes, shown: str) -> None:
    assert quoted(words) == shown


def test_a_refusal_can_be_built_of_any_text() -> None:
    assert len(Reject(reason="invalid", detail="\n" * (1 << 21)).detail) == MAX_SENTENCE
    assert len(Ack(position=0, attempt=1, outcome="invalid", detail="x" * (1 << 21)).detail) == MAX_SENTENCE


def line(text: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord("learner", logging.WARNING, __file__, 1, text, args, None)


def test_lines_of_one_kind_are_bounded_and_those_left_out_are_counted() -> None:
    now = 0.0
    limit = LineLimit(lambda: now)
    written = [limit.filter(line("refused %d", number)) for number in range(1000)]
    assert written == [True] * MAX_LINES + [False] * (1000 - MAX_LINES)
    assert limit.filter(line("another kind"))
    now = 60.0
    after = line("refused %d", 7)
    assert limit.filter(after)
    assert after.getMessage() == f"refused 7 (and {1000 - MAX_LINES} more lines like an earlier one)"
    assert limit.filter(following := line("refused %d", 8))
    assert following.getMessage() == "refused 8"


def test_a_message_limit_below_the_largest_group_is_refused_with_both_numbers() -> None:
    needed = largest_group_bytes(16, 3072)
    with pytest.raises(ValidationError, match=f"1048576 is less than the {needed} bytes"):
        RunConfig(network={"max_message_bytes": 1 << 20})  # type: ignore[arg-type]
    RunConfig(network={"max_message_bytes": needed})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("network", "chunk_bytes", 512 << 20),
        ("network", "max_message_bytes", 2 << 30),
        ("actor", "groups_in_flight", 1 << 16),
        ("sampling", "group_size", 1 << 11),
    ],
)
def test_settings_that_the_wire_would_refuse_are_refused_at_start(section: str, name: str, value: int) -> None:
    with pytest.raises(ValidationError, match=name):
        RunConfig(**{section: {name: value}})  # type: ignore[arg-type]


def test_what_happens_over_and_over_is_worth_a_line_at_first_and_then_once_in_a_while_with_its_number() -> None:
    now = [100.0]
    repeats = Repeats(60.0, lambda: now[0])
    assert [repeats.count("a") for _ in range(5)] == [1, 0, 0, 0, 0]
    assert repeats.count("b") == 1
    now[0] += 60.0
    assert [repeats.count("a") for _ in range(2)] == [5, 0]


def test_of_what_happens_over_and_over_only_so_many_kinds_are_remembered() -> None:
    repeats = Repeats(60.0, lambda: 0.0)
    for number in range(10_000):
        assert repeats.count(str(number)) == 1
    assert repeats.count("0") == 1
    assert repeats.count("9999") == 0
