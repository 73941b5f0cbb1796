"""What every task of the demo makes of its problems: an id, and a file that a learner and `dcpo eval` read."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol


class Written(Protocol):
    """A problem as a file has it."""

    @property
    def id(self) -> str: ...

    @property
    def problem(self) -> str: ...

    @property
    def answer(self) -> str: ...


def problem_id(problem: str, answer: str) -> str:
    """16 hexadecimal digits of the digest of problem and answer."""
    return hashlib.sha256(f"{problem}\n{answer}".encode()).hexdigest()[:16]


def write_problems(problems: Iterable[Written], path: Path) -> None:
    """Write one JSON object a line with the fields id, problem and answer, all of them strings."""
    with path.open("w", encoding="utf-8") as file:
        for problem in problems:
            file.write(json.dumps({"id": problem.id, "problem": problem.problem, "answer": problem.answer}) + "\n")
