"""`dcpo data check`: which problems of evaluation sets stand in a training set."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from dcpo_async.metrics.live_table import plain_table
from dcpo_async.prompts.contamination import Likeness, Overlap, count_contaminated, overlaps
from dcpo_async.prompts.presets import problem_source
from dcpo_async.prompts.source import load


@dataclass(frozen=True, slots=True)
class ProblemTexts:
    """A problem set by its name and the texts of its problems."""

    name: str
    texts: Sequence[str]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A training set beside an evaluation set."""

    train: ProblemTexts
    evaluation: ProblemTexts
    overlaps: Sequence[Overlap]

    def counts(self) -> dict[str, int]:
        """Evaluation problems that are in the training set, by the name of their likeness."""
        return {likeness.name.lower(): count for likeness, count in count_contaminated(self.overlaps).items()}

    def pairs(self) -> Iterator[dict[str, Any]]:
        """Every overlap with its texts."""
        for overlap in self.overlaps:
            yield {
                "likeness": overlap.likeness.name.lower(),
                "evaluation_place": overlap.evaluation,
                "evaluation_problem": self.evaluation.texts[overlap.evaluation],
                "train_place": overlap.train,
                "train_problem": self.train.texts[overlap.train],
            }


def compare(train: str, evaluations: Sequence[str]) -> list[Comparison]:
    """Compare a training set with evaluation sets; the words are those of `problem_source`."""
    trained = _texts(train)
    return [Comparison(trained, tested, overlaps(trained.texts, tested.texts)) for tested in map(_texts, evaluations)]


def print_table(comparisons: Sequence[Comparison], console: Console) -> None:
    """Print a line of counts for each comparison."""
    numbered = ("problems", *(likeness.name.lower() for likeness in Likeness))
    table = plain_table("train", "evaluation", *numbered, right=numbered)
    for one in comparisons:
        numbers = (len(one.evaluation.texts), *one.counts().values())
        table.add_row(one.train.name, one.evaluation.name, *(f"{number:,}" for number in numbers))
    console.print(table)


def print_pairs(comparisons: Sequence[Comparison], console: Console) -> None:
    """Print every pair of problems that are alike, whole and one above the other."""
    for one in comparisons:
        for pair in one.pairs():
            console.print(
                f"\n{pair['likeness']}: {one.evaluation.name} {pair['evaluation_place']} and "
                f"{one.train.name} {pair['train_place']}\n  {pair['evaluation_problem']}\n  {pair['train_problem']}",
                markup=False,
                highlight=False,
            )


def as_json(comparisons: Sequence[Comparison]) -> str:
    """All of it for a program: a list of the comparisons."""
    content = [
        {
            "train": one.train.name,
            "evaluation": one.evaluation.name,
            "problems": len(one.evaluation.texts),
            **one.counts(),
            "pairs": list(one.pairs()),
        }
        for one in comparisons
    ]
    return json.dumps(content, indent=2, ensure_ascii=False)


def _texts(word: str) -> ProblemTexts:
    source = problem_source(word)
    return ProblemTexts(source.name, [problem.problem for problem in load(source).problems])
