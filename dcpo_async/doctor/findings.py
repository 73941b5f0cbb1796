"""What a look found."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        severity: an error keeps a run from working; a warning hurts it, or will.
        what: was found, with its numbers and names, in one line.
        remedy: what to do about it.
    """

    severity: Severity
    what: str
    remedy: str


def error(what: str, remedy: str) -> Finding:
    """What keeps a run from working."""
    return Finding("error", what, remedy)


def warning(what: str, remedy: str) -> Finding:
    """What hurts a run, or will."""
    return Finding("warning", what, remedy)


def said(severity: Severity, text: str, remedy: str) -> Finding:
    """What a service says itself: its words are `found; what to do`, and `remedy` stands in where it says only the
    first."""
    what, _, advice = " ".join(text.split()).partition("; ")
    return Finding(severity, what, advice or remedy)
