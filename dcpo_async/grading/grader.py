"""Grades one response against a reference answer: by our own comparison, symbolically where that cannot read one."""

from dcpo_async.grading.algebra import Algebra
from dcpo_async.grading.extraction import Extraction, extract_answer, reference_in
from dcpo_async.grading.math.comparison import compare
from dcpo_async.grading.verdict import Verdict

# Longer than any answer of the known problem sets; text beyond it is no answer but an attack on the parser.
MAX_ANSWER_CHARS = 1000
_ALGEBRA = Algebra()


def grade(response_text: str, reference_answer: str, extraction: Extraction = "boxed") -> Verdict:
    r"""Whether a response's answer equals the reference; a pure function of its inputs that never raises.

    It takes bounded time: what our own comparison leaves open is compared symbolically by an interpreter of its own,
    which is ended after five seconds. Responses of a model go through `GradingPool`, which does not wait for it.

    Example: grade(r"\boxed{0.5}", r"\frac{1}{2}") is Verdict(correct=True, extracted="0.5", reason="equal").
    """
    verdict = quick_verdict(response_text, reference_answer, extraction)
    if verdict.reason == "undecided" and verdict.extracted is not None:
        return _ALGEBRA.verdict(verdict.extracted, reference_answer)
    return verdict


def quick_verdict(response_text: str, reference_answer: str, extraction: Extraction) -> Verdict:
    """The verdict where our own comparison suffices, else `undecided`; quick for any input."""
    if not isinstance(response_text, str) or not isinstance(reference_answer, str):
        return Verdict(False, None, "not_text")
    if not reference_answer.strip():
        return Verdict(False, None, "no_reference")
    extracted = extract_answer(response_text, extraction)
    if extracted is None:
        return Verdict(False, None, "no_answer")
    reference = reference_in(reference_answer)
    if len(extracted) > MAX_ANSWER_CHARS or len(reference) > MAX_ANSWER_CHARS:
        return Verdict(False, None, "too_long")
    try:
        is_same = compare(extracted, reference)
    except Exception:  # nothing that a model writes may cost a group
        return Verdict(False, extracted, "unparsable")
    match is_same:
        case True:
            return Verdict(True, extracted, "equal")
        case False:
            return Verdict(False, extracted, "different")
        case None:
            return Verdict(False, extracted, "undecided")


def symbolic_verdict(extracted: str, reference_answer: str) -> Verdict:
    """The verdict of symbolic comparison; may take unbounded time and memory."""
    # Imported here because sympy takes a second to load and most processes never need it.
    from dcpo_async.grading.math.equivalence import is_equivalent

    try:
        correct = is_equivalent(extracted, reference_in(reference_answer))
    except Exception:  # sympy raises nearly anything on text made by a model, RecursionError included
        return Verdict(False, extracted, "unparsable")
    return Verdict(correct, extracted, "equivalent" if correct else "different")
