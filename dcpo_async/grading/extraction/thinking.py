"""What a model thinks before it answers, which is no part of its answer."""

TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
"""Of DeepSeek-R1, Qwen3 and most others; Magistral; Seed-OSS; Kimi; Sky-T1."""


def after_thought(text: str) -> str:
    """What stands behind the last thought, and before one that is opened later; empty where one never ends.

    Example: after_thought("<think>4?</think>5<think>6") is "5", and after_thought("<think>4") is "".
    """
    for opening, closing in TAGS:
        text = text.rpartition(closing)[2].partition(opening)[0]
    return text


def opened_by(prompt_text: str) -> str:
    """The tag of a thought that a prompt ends in, as those of templates that open it do; empty without one."""
    end = prompt_text.rstrip()
    return next((opening for opening, _ in TAGS if end.endswith(opening)), "")


def last_characters(text: str, num_characters: int) -> str:
    """The end of a text; where it lies in a thought whose beginning is cut off, the tag stands in front of it."""
    if len(text) <= num_characters:
        return text
    cut, kept = text[:-num_characters], text[-num_characters:]
    for opening, closing in TAGS:
        if cut.rfind(opening) > cut.rfind(closing) and closing not in kept:
            return opening + kept[len(opening) :]
    return kept
