"""Problem sets by name, chat formatting, contamination, and the endless order in which prompts are visited."""

from dcpo_async.prompts.chat import EncodedPrompts, encode_prompts, prompts_digest
from dcpo_async.prompts.contamination import Likeness, Overlap, count_contaminated, overlaps
from dcpo_async.prompts.order import PromptOrder
from dcpo_async.prompts.presets import PRESETS, ProblemSource, problem_source
from dcpo_async.prompts.source import LoadedProblems, Problem, load

__all__ = [
    "PRESETS",
    "EncodedPrompts",
    "Likeness",
    "LoadedProblems",
    "Overlap",
    "Problem",
    "ProblemSource",
    "PromptOrder",
    "count_contaminated",
    "encode_prompts",
    "load",
    "overlaps",
    "problem_source",
    "prompts_digest",
]
