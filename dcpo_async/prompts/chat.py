"""Turns problems into tokenized prompts, once and for the whole run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dcpo_async.errors import ConfigError, DatasetError
from dcpo_async.prompts.chat_template import ChatTemplate
from dcpo_async.prompts.digest import digest_of
from dcpo_async.prompts.source import Problem
from dcpo_async.records import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PLACEHOLDER = "{problem}"


@dataclass(frozen=True, slots=True)
class EncodedPrompts:
    """The prompts of a run.

    Attributes:
        prompts: in the order of the source; their ids are unique.
        num_too_long: problems left out because their prompt has more than max_prompt_tokens tokens.
        digest: of all ids, token ids and what rewards are given; checked when a run resumes.
        tells_time: the template asks for the date, so that the prompts of another day are others.
    """

    prompts: tuple[Prompt, ...]
    num_too_long: int
    digest: str
    tells_time: bool = False


def encode_prompts(
    problems: Sequence[Problem],
    tokenizer: "PreTrainedTokenizerBase",
    system_prompt: str | None,
    template: str,
    max_prompt_tokens: int,
    arguments: Mapping[str, Any] = MappingProxyType({}),
    now: datetime | None = None,
) -> EncodedPrompts:
    """Prompts ready for the engine, by the tokenizer's chat template where it has one, else as plain text.

    Args:
        problems: distinct ones, as `load` gives them.
        system_prompt: the system message, None or empty for none; refused where the tokenizer has no chat template.
        template: the user's message (or the plain text); {problem} is replaced, other braces stay.
        max_prompt_tokens: longer prompts are left out and counted.
        arguments: more variables of the chat template, such as enable_thinking; each has to be one that it reads.
        now: local time that the template is told; None for that of this moment.

    Raises ConfigError for settings that cannot be followed, DatasetError where no prompt is left.
    """
    if _PLACEHOLDER not in template:
        raise ConfigError(f"the prompt template {template!r} has no {_PLACEHOLDER}; put it where the problem goes")
    has_chat = tokenizer.chat_template is not None
    if system_prompt and not has_chat:
        raise ConfigError(
            "the tokenizer has no chat template, so there is no system message; put its text in the template"
        )
    if arguments and not has_chat:
        raise ConfigError("the tokenizer has no chat template that would read data.template_arguments; leave them out")
    chat = ChatTemplate(tokenizer, arguments, now or datetime.now()) if has_chat else None
    texts = [template.replace(_PLACEHOLDER, problem.problem) for problem in problems]
    if chat is not None:
        texts = [chat.text(system_prompt or None, text) for text in texts]
        _refuse_dropped(problems, texts)
    # A chat template writes the special tokens itself.
    token_ids = _tokenized(tokenizer, texts, add_special_tokens=not has_chat)
    token_ids = [_without_end(tokenizer, tokens) for tokens in token_ids]
    _refuse_unusable(tokenizer, token_ids)
    prompts = tuple(
        Prompt(digest_of((problem.problem, problem.answer)), problem.problem, problem.answer, tokens, problem.metadata)
        for problem, tokens in zip(problems, token_ids, strict=True)
        if len(tokens) <= max_prompt_tokens
    )
    num_too_long = len(problems) - len(prompts)
    if not prompts:
        raise DatasetError(
            f"no prompt is left of {len(problems)} problems: {num_too_long} have more than {max_prompt_tokens} prompt "
            "tokens; raise max_prompt_tokens or give another data set"
        )
    tells_time = chat is not None and chat.tells_time
    return EncodedPrompts(prompts, num_too_long, prompts_digest(prompts), tells_time)


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """Of all ids, token ids and what rewards are given, in order."""
    return digest_of(
        text for prompt in prompts for text in (prompt.id, str(prompt.token_ids), *filter(None, [prompt.metadata]))
    )


def _refuse_dropped(problems: Sequence[Problem], texts: Sequence[str]) -> None:
    for problem, text in zip(problems, texts, strict=True):
        if problem.problem not in text:
            raise ConfigError(
                f"the chat template drops the problem: {problem.problem[:60]!r} is not in its prompt {text[:60]!r}; "
                "give a tokenizer whose template writes message.content as a text"
            )


def _without_end(tokenizer: "PreTrainedTokenizerBase", tokens: tuple[int, ...]) -> tuple[int, ...]:
    """Some tokenizers append their end token, and behind it every response would begin after the end of the text."""
    end = tokenizer.eos_token_id
    while end is not None and tokenizer.chat_template is None and tokens and tokens[-1] == end:
        tokens = tokens[:-1]
    return tokens


def _refuse_unusable(tokenizer: "PreTrainedTokenizerBase", token_ids: Sequence[tuple[int, ...]]) -> None:
    for number, tokens in enumerate(token_ids, start=1):
        if not tokens:
            raise ConfigError(f"the prompt of problem {number} has no tokens; check the tokenizer and its template")
        if tokens[-1] == tokenizer.eos_token_id:
            raise ConfigError(
                f"the prompt of problem {number} ends in the end token {tokenizer.eos_token!r}, so that nothing "
                "follows it; give a chat template that opens the answer for add_generation_prompt"
            )


def _tokenized(
    tokenizer: "PreTrainedTokenizerBase", texts: list[str], add_special_tokens: bool
) -> list[tuple[int, ...]]:
    # Without verbose=False it warns of prompts beyond the model's length, which are left out here anyway.
    encoded = tokenizer(texts, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
    return [tuple(token_ids) for token_ids in encoded]
