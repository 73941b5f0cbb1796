"""Answers against themselves and the next ones, ours and math-verify's: `python bench/grading_agreement.py FILE …`."""

import argparse
import json
import logging
from itertools import pairwise
from pathlib import Path

from math_verify import parse, verify

from dcpo_async.grading import grade


def main() -> None:
    """Print a line for each set, and every neighbour that passes for the same answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="+", help="JSON lines with the fields `id` and `answer`")
    options = parser.parse_args()
    for name in ("math_verify", "latex2sympy2_extended"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    print("| set | answers | right against itself: ours | math-verify | next differs | wrong: ours | math-verify |")
    print("|---|---|---|---|---|---|---|")
    accepted = [line for path in options.data for line in compare_neighbours(path)]
    print("\ntaken for the same as the next one:", *accepted, sep="\n  ")


def compare_neighbours(path: Path) -> list[str]:
    """Print the line of one set; returns a line for each neighbour that was accepted."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    neighbours = [
        (row, following)
        for row, following in pairwise(rows)
        if "".join(row["answer"].split()) != "".join(following["answer"].split())
    ]
    alike = [verdicts(row["answer"], row["answer"]) for row in rows]
    apart = [verdicts(following["answer"], row["answer"]) for row, following in neighbours]
    ours_alike, theirs_alike = (sum(found) / len(alike) for found in zip(*alike, strict=True))
    ours_apart, theirs_apart = (1 - sum(found) / len(apart) for found in zip(*apart, strict=True))
    print(
        f"| {path.stem} | {len(alike)} | {ours_alike:.2%} | {theirs_alike:.2%} "
        f"| {len(apart)} | {ours_apart:.2%} | {theirs_apart:.2%} |",
        flush=True,
    )
    return [
        f"{row['id']}: {row['answer']} and {following['answer']}; ours {ours}, math-verify {theirs}"
        for (row, following), (ours, theirs) in zip(neighbours, apart, strict=True)
        if ours or theirs
    ]


def verdicts(answer: str, reference: str) -> tuple[bool, bool]:
    """Ours and math-verify's on an answer boxed in a sentence."""
    response = f"Adding up what we found, the answer is $\\boxed{{{answer}}}$, as required."
    theirs = verify(parse(f"\\boxed{{{reference}}}"), parse(response))
    return grade(response, reference).correct, bool(theirs)


if __name__ == "__main__":
    main()
