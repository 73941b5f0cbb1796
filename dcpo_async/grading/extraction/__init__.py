"""Finds the answer in a response, and in a reference that is more than an answer, in time linear in its length."""

import re
from typing import Literal

from dcpo_async.grading.extraction.boxes import boxed_answers, last_boxed
from dcpo_async.grading.extraction.markers import behind_marker, last_number
from dcpo_async.grading.extraction.mathematics import last_mathematics, only_mathematics
from dcpo_async.grading.extraction.thinking import after_thought

__all__ = ["MAX_RESPONSE_CHARS", "Extraction", "extract_answer", "reference_in"]

Extraction = Literal["boxed", "answer", "last_number", "last_math"]

# Answers stand at the end; what lies further back than this is not read.
MAX_RESPONSE_CHARS = 100_000
# Of other turns that a model without an end goes on to write, nothing is read.
_TURN = re.compile(r"<\|[a-zA-Z_]{2,20}\|>|</s>|<end_of_turn>")
_FINAL_LINE = re.compile(r"####\s*([^\n]+)\s*$")


def extract_answer(response_text: str, extraction: Extraction = "boxed") -> str | None:
    r"""The answer that a response gives, as it wrote it; None where it gives none.

    What stands in `<think>`, or before `</think>`, is no answer (`thinking.TAGS` has other makes of them), nor is what
    stands behind the token that ends a turn; of the rest only the end is read (`MAX_RESPONSE_CHARS`). A box that is
    opened behind the last closed one and never closed leaves no answer: the response was cut off while it gave another
    one. Nor does a box that the sentence behind it takes back, where the response ends with that sentence.

    Args:
        extraction: `boxed` reads the last \boxed{} or \fbox{} that holds something, together with those before it that
            only a comma, "and" or "or" keeps apart. `answer`, where there is no box, what stands in the last
            <answer>, or behind the last "####", "answer is", "Answer:" or heading "Final Answer".
            `last_number`, where there is neither, the last number (1,234.5 and $20 and 3/4 are numbers).
            `last_math`, where there is neither, the last mathematics: a response that is nothing else, what stands
            between the last mathematical delimiters, an inequality, a number.

    Example: extract_answer(r"so \boxed{\frac{1}{2}}") is r"\frac{1}{2}".
    """
    text = _this_turn(after_thought(response_text)[-MAX_RESPONSE_CHARS:])
    answer = last_boxed(text)
    if answer is None or (answer == "" and extraction == "boxed"):
        return None
    if not answer:
        answer = behind_marker(text)
        if extraction == "last_math":
            answer = only_mathematics(answer) or answer
    if not answer and extraction == "last_number":
        answer = last_number(text)
    if not answer and extraction == "last_math":
        answer = last_mathematics(text)
    return answer or None


def reference_in(reference: str) -> str:
    r"""The answer in a reference that is a whole solution: its last boxes, or what stands behind its last "####".

    Example: reference_in(r"So it is $\boxed{17}$ percent.") is "17", and that of "17" is "17" itself.
    """
    reference = reference[-MAX_RESPONSE_CHARS:]
    if r"\boxed" in reference or r"\fbox" in reference:
        return boxed_answers(reference) or reference
    final = _FINAL_LINE.search(reference.rstrip())
    return final[1] if final is not None and reference.count("####") == 1 else reference


def _this_turn(text: str) -> str:
    for end in _TURN.finditer(text):
        if text[: end.start()].strip():
            return text[: end.start()]
    return text
