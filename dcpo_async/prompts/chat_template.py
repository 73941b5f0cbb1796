"""The chat template of a tokenizer: what it makes of messages, which names it reads, and the date that it may write."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.nodes import Node
from jinja2.parser import Parser

from dcpo_async.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OURS = frozenset({"messages", "add_generation_prompt"})
_CLOCK = "strftime_now"


class _Generation(Extension):
    """The tag that transformers adds: it marks what the assistant says, and writes nothing itself."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


class ChatTemplate:
    """Writes prompts by a tokenizer's template, with arguments of the user, and as of a moment.

    Templates ask for the date by `strftime_now`, as those of Llama 3 and gpt-oss do: they are given that of `now`, so
    that a run has the prompts of its first day on every later one.

    Args:
        tokenizer: has a chat template.
        arguments: more variables of the template, by name.
        now: local time.

    Raises ConfigError where the template cannot be read, or never reads one of the arguments.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", arguments: Mapping[str, Any], now: datetime) -> None:
        self._tokenizer = tokenizer
        try:
            source = tokenizer.get_chat_template()
            read = find_undeclared_variables(_environment().parse(source))
        except (TemplateError, ValueError) as error:
            raise ConfigError(
                f"the tokenizer's chat template cannot be read: {one_line(error)}; give a tokenizer with one sound "
                "template, or with a default one among several"
            ) from error
        _refuse_unread(arguments, read)
        self.tells_time = _CLOCK in source
        self._variables = {**arguments, _CLOCK: now.strftime}

    def text(self, system_prompt: str | None, content: str) -> str:
        """The prompt of a user's message, the answer opened; raises ConfigError where the template refuses it."""
        messages = [{"role": "user", "content": content}]
        if system_prompt is not None:
            messages.insert(0, {"role": "system", "content": system_prompt})
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False, **self._variables
            )
        # A template is a program of whoever made the tokenizer: it divides by zero, indexes, and adds what it likes.
        except (TemplateError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
            advice = (
                "leave data.system_prompt empty and put its text in data.prompt_template"
                if system_prompt is not None
                else "give a tokenizer whose chat template takes one message of the user"
            )
            raise ConfigError(
                f"the tokenizer's chat template refuses the messages: {one_line(error)}; {advice}"
            ) from error
        return text


def one_line(error: Exception) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _environment() -> Environment:
    # Nothing is rendered by it.
    return Environment(extensions=[loopcontrols, _Generation])


def _refuse_unread(arguments: Mapping[str, Any], read: set[str]) -> None:
    for name, value in arguments.items():
        if name in _OURS:
            raise ConfigError(f"data.template_arguments.{name} is given to the chat template by dcpo-async; leave it")
        if name not in read:
            names = ", ".join(sorted(read - _OURS)) or "none"
            raise ConfigError(f"data.template_arguments.{name} is read nowhere in the chat template, which has {names}")
        if isinstance(value, str) and value.casefold() in ("true", "false"):
            raise ConfigError(
                f"data.template_arguments.{name} is the text {value!r}, which a template takes for true; write "
                f"{value.casefold()} as in --data.template_arguments '{{\"{name}\": {value.casefold()}}}'"
            )
