"""Responses as text: special tokens, and thoughts that the prompt opens."""

from collections.abc import Sequence

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dcpo_async.grading import ResponseTexts, grade, graded
from dcpo_async.grading.extraction import MAX_RESPONSE_CHARS
from dcpo_async.grading.extraction.thinking import TAGS, after_thought, last_characters, opened_by
from dcpo_async.grading.verdict import Verdict
from dcpo_async.records import Lease, Response

CHARACTERS = "\n \\{}<>/=+0123456789abcdefghijklmnopqrstuvwxyz"
GUESS = r"\boxed{7} no"


def tokenizer(*special: str) -> PreTrainedTokenizerFast:
    words = {character: number for number, character in enumerate(("<pad>", "<eos>", "<unk>", *CHARACTERS))}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    made.add_special_tokens([AddedToken(word, special=True) for word in special])
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def ids(made: PreTrainedTokenizerFast, text: str) -> list[int]:
    found: list[int] = made(text, add_special_tokens=False)["input_ids"]
    return found


def text_of(prompt: str, response: str, *special: str) -> str:
    made = tokenizer(*special)
    return ResponseTexts(made).text(ids(made, prompt), ids(made, response))


def test_special_tokens_are_left_out() -> None:
    assert text_of("1+1=", "2<eos>", "<tool>") == "2"
    assert text_of("1+1=", "2<tool><eos>", "<tool>") == "2"
    assert text_of("1+1=", "2<tool><eos>") == "2<tool>"


@pytest.mark.parametrize("special", [(), ("<think>", "</think>")])
def test_a_box_within_a_thought_is_no_answer_whatever_kind_of_token_its_tags_are(special: Sequence[str]) -> None:
    for response, answer in (
        (f"<think>{GUESS}</think>so \\boxed{{4}}<eos>", "4"),
        (f"<think>{GUESS}", None),
        (f"<think>{GUESS}</think>so four<eos>", None),
    ):
        assert grade(text_of("2+2=", response, *special), "7", "boxed").extracted == answer


@pytest.mark.parametrize("special", [(), ("<think>", "</think>")])
@pytest.mark.parametrize("end", ["", "\n", "\n\n "])
def test_where_the_prompt_opens_the_thought_a_box_within_it_is_no_answer(special: Sequence[str], end: str) -> None:
    prompt = f"2+2=<think>{end}"
    assert grade(text_of(prompt, GUESS, *special), "7").extracted is None
    assert grade(text_of(prompt, f"{GUESS}</think>so four", *special), "7").extracted is None
    assert grade(text_of(prompt, f"{GUESS}</think>so \\boxed{{4}}", *special), "7").extracted == "4"
    assert grade(text_of(f"2+2=<think>{end}</think>{end}", GUESS, *special), "7").correct


def test_a_prompt_that_speaks_of_the_tag_does_not_open_a_thought() -> None:
    assert text_of("think between <think> and </think>. 2+2=", GUESS) == GUESS
    assert text_of("begin with <think> please. 2+2=", GUESS) == GUESS


@pytest.mark.parametrize(("opening", "closing"), TAGS)
def test_every_make_of_tags_is_known(opening: str, closing: str) -> None:
    assert after_thought(f"{opening}7{closing}4") == "4"
    assert after_thought(f"{opening}7") == ""
    assert opened_by(f"2+2={opening}\n") == opening


def test_what_is_kept_of_a_long_text_still_says_that_it_is_a_thought() -> None:
    for text, kept in (
        ("<think>" + "a" * 20, "<think>aaa"),
        ("<think></think>" + "a" * 20, "a" * 10),
        ("<think>" + "a" * 20 + "</think>4", "a</think>4"),
        ("<think>a", "<think>a"),
    ):
        assert last_characters(text, 10) == kept


def test_a_group_keeps_of_each_text_what_is_graded_again_alike() -> None:
    lease = Lease(0, 1, "p", 1, 1, np.array([1], np.int32), "7")
    nothing = np.zeros(0, np.int32), np.zeros(0, np.float32)
    response = Response(*nothing, (), "length", "<think>" + "so " * MAX_RESPONSE_CHARS + GUESS)
    group = graded(lease, [response], [Verdict(False, None, "no_answer")], 0.0)
    text = group.responses[0].text
    assert len(text) == MAX_RESPONSE_CHARS
    assert grade(text, "7").extracted is grade(response.text, "7").extracted is None
