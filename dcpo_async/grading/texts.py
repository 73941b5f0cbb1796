"""Responses as text, as they are graded and read: without special tokens, but with what they say of a thought."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dcpo_async.grading.extraction.thinking import TAGS, opened_by

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_KEPT = frozenset({tag for tags in TAGS for tag in tags} | {"<answer>", "</answer>"})
_TAIL_TOKENS = 32
"""Of a prompt: more than the longest tag and the line break behind it take."""


class ResponseTexts:
    """Makes the text of a response from its tokens.

    Special tokens are left out, as `skip_special_tokens` does it; but tags of thoughts and answers are special in some
    tokenizers too, and without them what was thought would be read as the answer.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        special = {number for number, token in added.items() if token.special} | set(tokenizer.all_special_ids)
        kept = {number for number in special if tokenizer.decode([number]).strip() in _KEPT}
        self._hidden = frozenset(special - kept)

    def text(self, prompt_token_ids: Sequence[int], token_ids: Sequence[int]) -> str:
        """The text of a response; where its prompt ends in a thought that it opens, the tag stands in front."""
        prompt_end = self._tokenizer.decode(list(prompt_token_ids[-_TAIL_TOKENS:]), skip_special_tokens=False)
        shown = [token for token in token_ids if token not in self._hidden]
        return opened_by(str(prompt_end)) + str(self._tokenizer.decode(shown, skip_special_tokens=False))
