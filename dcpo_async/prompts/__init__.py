"""Prompt sources, chat formatting, and the endless order in which prompts are visited."""

from dcpo_async.prompts.chat import EncodedPrompts, encode_prompts
from dcpo_async.prompts.order import PromptOrder
from dcpo_async.prompts.source import LoadedProblems, Problem, load_problems

__all__ = ["EncodedPrompts", "LoadedProblems", "Problem", "PromptOrder", "encode_prompts", "load_problems"]
