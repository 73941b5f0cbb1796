"""Tokenized prompts."""

from datetime import datetime
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from dcpo_async.errors import ConfigError, DatasetError
from dcpo_async.prompts import EncodedPrompts, Problem, encode_prompts

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
CHARACTERS = "?" + "<>{}\\ abcdefghijklmnopqrstuvwxyz0123456789+"
ADD = Problem("1+1", "2")
DOUBLE = Problem("2+2", "4")


def character_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """Token i is the i-th of CHARACTERS, so that token ids can be read back as text."""
    vocabulary = {character: number for number, character in enumerate(CHARACTERS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?", chat_template=chat_template)


def text_of(token_ids: tuple[int, ...]) -> str:
    return "".join(CHARACTERS[token] for token in token_ids)


def test_a_chat_template_frames_system_and_user_and_opens_the_answer() -> None:
    encoded = encode_prompts([ADD], character_tokenizer(), "be brief", r"{problem} in \boxed{}", 100)
    assert text_of(encoded.prompts[0].token_ids) == r"<s>be brief<u>1+1 in \boxed{}<a>"
    assert (encoded.prompts[0].problem, encoded.prompts[0].answer) == ("1+1", "2")


@pytest.mark.parametrize("system_prompt", [None, ""])
def test_a_system_prompt_is_optional(system_prompt: str | None) -> None:
    encoded = encode_prompts([ADD], character_tokenizer(), system_prompt, "{problem}", 100)
    assert text_of(encoded.prompts[0].token_ids) == "<u>1+1<a>"


def test_without_a_chat_template_the_plain_text_is_the_prompt() -> None:
    encoded = encode_prompts([ADD], character_tokenizer(None), None, "q {problem} a", 100)
    assert text_of(encoded.prompts[0].token_ids) == "q 1+1 a"


def test_prompts_over_the_limit_are_left_out_and_counted() -> None:
    problems = [Problem("123456", "1"), Problem("12345", "1"), Problem("1234567", "1")]
    encoded = encode_prompts(problems, character_tokenizer(None), None, "{problem}", 6)
    assert [prompt.problem for prompt in encoded.prompts] == ["123456", "12345"]
    assert encoded.num_too_long == 1


def test_an_id_depends_on_problem_and_answer_alone() -> None:
    chat = encode_prompts([ADD, DOUBLE], character_tokenizer(), None, "{problem}", 100)
    plain = encode_prompts([DOUBLE, ADD], character_tokenizer(None), None, "{problem}", 100)
    assert [prompt.id for prompt in chat.prompts] == [prompt.id for prompt in reversed(plain.prompts)]
    # Ids are the keys of a run's statistics: a changed one would lose them.
    assert chat.prompts[0].id == "0fd6b5134a8c37de"


def test_the_digest_changes_with_the_tokens() -> None:
    first, again, other = (
        encode_prompts([ADD], character_tokenizer(), None, template, 100).digest
        for template in ("{problem}", "{problem}", "{problem} ")
    )
    assert first == again != other


def test_settings_that_cannot_be_followed_are_refused() -> None:
    with pytest.raises(ConfigError, match="no chat template"):
        encode_prompts([ADD], character_tokenizer(None), "be brief", "{problem}", 100)
    with pytest.raises(ConfigError, match=r"no \{problem\}"):
        encode_prompts([ADD], character_tokenizer(), None, "solve it", 100)


def test_no_prompt_left_is_refused_with_the_counts() -> None:
    with pytest.raises(DatasetError, match="no prompt is left of 2 problems: 2 have more than 4 prompt tokens"):
        encode_prompts([ADD, DOUBLE], character_tokenizer(), None, "{problem}", 4)


@pytest.mark.parametrize(
    ("chat_template", "system_prompt", "complaint"),
    [
        ("{{ raise_exception('no system here') }}", "be brief", "no system here; leave data.system_prompt empty"),
        ("{% for m in %}", None, "cannot be read"),
        ("{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}a", None, "drops the"),
        ("{{ messages[0].content }}?", None, "ends in the end token"),
    ],
)
def test_templates_that_make_no_usable_prompt_are_refused(
    chat_template: str, system_prompt: str | None, complaint: str
) -> None:
    tokenizer = character_tokenizer(chat_template)
    tokenizer.eos_token = "?"
    with pytest.raises(ConfigError, match=complaint):
        encode_prompts([ADD], tokenizer, system_prompt, "{problem}", 100)


DATED = "{{ strftime_now('%d %b') | lower }} {% for m in messages %}{{ m.content }}{% endfor %}?"
THINKING = (
    "{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if enable_thinking is defined and enable_thinking is false %}<a>{% else %}<think>{% endif %}"
)


def encoded(chat_template: str | None, arguments: dict[str, object], now: datetime | None = None) -> EncodedPrompts:
    return encode_prompts([ADD], character_tokenizer(chat_template), None, "{problem}", 100, arguments, now)


def test_template_arguments_reach_the_template() -> None:
    assert text_of(encoded(THINKING, {}).prompts[0].token_ids) == "1+1<think>"
    assert text_of(encoded(THINKING, {"enable_thinking": False}).prompts[0].token_ids) == "1+1<a>"


@pytest.mark.parametrize(
    ("chat_template", "arguments", "complaint"),
    [
        (THINKING, {"enable_thinkin": False}, "enable_thinkin is read nowhere in the chat template, which has enable_"),
        (CHAT_TEMPLATE, {"enable_thinking": False}, "is read nowhere in the chat template, which has none"),
        (THINKING, {"messages": []}, "template_arguments.messages is given to the chat template by dcpo-async"),
        (THINKING, {"enable_thinking": "False"}, "is the text 'False', which a template takes for true"),
        (None, {"enable_thinking": False}, "no chat template that would read data.template_arguments"),
    ],
)
def test_template_arguments_that_would_not_do_what_they_say_are_refused(
    chat_template: str | None, arguments: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        encoded(chat_template, arguments)


def test_a_name_that_the_template_gives_a_default_or_reads_in_a_marked_passage_is_read() -> None:
    for template in (
        "{% set effort = effort | default('low') %}{{ messages[0].content }} {{ effort }}",
        "{{ messages[0].content }} {% generation %}{{ effort }}{% endgeneration %}",
        "{% macro say() %}{{ effort }}{% endmacro %}{{ messages[0].content }} {{ say() }}",
    ):
        assert text_of(encoded(template, {"effort": "high"}).prompts[0].token_ids).startswith("1+1 ")


def test_the_date_in_a_template_is_that_of_the_moment_that_is_given() -> None:
    for now, text in ((datetime(2026, 3, 7), "07 mar 1+1?"), (datetime(2031, 11, 30), "30 nov 1+1?")):
        dated = encoded(DATED, {}, now)
        assert (text_of(dated.prompts[0].token_ids), dated.tells_time) == (text, True)
    assert encoded(CHAT_TEMPLATE, {}).tells_time is False


@pytest.mark.parametrize(
    "chat_template",
    [
        "{{ 1 // 0 }}{{ messages[0].content }}",
        "{{ messages[5].content.text }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages[0].content.nothing() }}",
        "{{ messages[0].content | unheard_of }}",
        "{% for m in messages %}",
        {"rag": CHAT_TEMPLATE, "tool_use": CHAT_TEMPLATE},
    ],
)
def test_templates_that_raise_are_refused_in_one_line(chat_template: Any) -> None:
    with pytest.raises(ConfigError, match=r"chat template (refuses the messages|cannot be read): ") as refused:
        encoded(chat_template, {})
    assert "\n" not in str(refused.value)


def test_an_empty_template_is_refused() -> None:
    with pytest.raises(ConfigError, match="drops the problem"):
        encoded("", {})


def test_the_end_token_that_a_base_tokenizer_appends_is_left_out() -> None:
    tokenizer = character_tokenizer(None)
    tokenizer.eos_token = "?"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A ?", special_tokens=[("?", CHARACTERS.index("?"))]
    )
    assert text_of(tuple(tokenizer("1+1")["input_ids"])) == "1+1?"
    assert text_of(encode_prompts([ADD], tokenizer, None, "{problem}", 100).prompts[0].token_ids) == "1+1"
