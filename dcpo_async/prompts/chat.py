"""Turns problems into tokenized prompts, once and for the whole run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dcpo_async.errors import ConfigError, DatasetError
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
        digest: of all ids and token ids; checked when a run resumes.
    """

    prompts: tuple[Prompt, ...]
    num_too_long: int
    digest: str


def encode_prompts(
    problems: Sequence[Problem],
    tokenizer: "PreTrainedTokenizerBase",
    system_prompt: str | None,
    template: str,
    max_prompt_tokens: int,
) -> EncodedPrompts:
    """Prompts ready for the engine, by the tokenizer's chat template where it has one, else as plain text.

    Args:
        problems: distinct ones, as `load` gives them.
        system_prompt: the system message; refused where the tokenizer has no chat template.
        template: the user's message (or the plain text); {problem} is replaced, other braces stay.
        max_prompt_tokens: longer prompts are left out and counted.

    Raises ConfigError for settings that cannot be followed, DatasetError where no prompt is left.
    """
    if _PLACEHOLDER not in template:
        raise ConfigError(f"the prompt template {template!r} has no {_PLACEHOLDER}; put it where the problem goes")
    has_chat = tokenizer.chat_template is not None
    if system_prompt is not None and not has_chat:
        raise ConfigError(
            "the tokenizer has no chat template, so there is no system message; put its text in the template"
        )
    texts = [template.replace(_PLACEHOLDER, problem.problem) for problem in problems]
    if has_chat:
        texts = [_chat_text(tokenizer, system_prompt, text) for text in texts]
    # A chat template writes the special tokens itself.
    token_ids = _tokenized(tokenizer, texts, add_special_tokens=not has_chat)
    prompts = tuple(
        Prompt(digest_of((problem.problem, problem.answer)), problem.problem, problem.answer, tokens)
        for problem, tokens in zip(problems, token_ids, strict=True)
        if len(tokens) <= max_prompt_tokens
    )
    num_too_long = len(problems) - len(prompts)
    if not prompts:
        raise DatasetError(
            f"no prompt is left of {len(problems)} problems: {num_too_long} have more than {max_prompt_tokens} prompt "
            "tokens; raise max_prompt_tokens or give another data set"
        )
    digest = digest_of(text for prompt in prompts for text in (prompt.id, str(prompt.token_ids)))
    return EncodedPrompts(prompts, num_too_long, digest)


def _chat_text(tokenizer: "PreTrainedTokenizerBase", system_prompt: str | None, content: str) -> str:
    messages = [{"role": "user", "content": content}]
    if system_prompt is not None:
        messages.insert(0, {"role": "system", "content": system_prompt})
    text: str = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return text


def _tokenized(
    tokenizer: "PreTrainedTokenizerBase", texts: list[str], add_special_tokens: bool
) -> list[tuple[int, ...]]:
    # Without verbose=False it warns of prompts beyond the model's length, which are left out here anyway.
    encoded = tokenizer(texts, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
    return [tuple(token_ids) for token_ids in encoded]
