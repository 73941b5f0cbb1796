"""Problems that ask for the largest of four numbers, in sets that share none, and guesses at them."""

import math
import random
from dataclasses import dataclass

from dcpo_async.demo.problems import problem_id

NUMBERS = range(10, 40)
PHRASES = ("\\boxed{{{}}}", "It is \\boxed{{{}}}.", "The answer is \\boxed{{{}}}.")


@dataclass(frozen=True)
class Comparison:
    """One problem: which of four different two-digit numbers is the largest."""

    numbers: tuple[int, int, int, int]

    @property
    def problem(self) -> str:
        """The question as a prompt asks it, such as "What is the largest of 37, 18, 12 and 25?"."""
        first, second, third, fourth = self.numbers
        return f"What is the largest of {first}, {second}, {third} and {fourth}?"

    @property
    def answer(self) -> str:
        """The right answer in digits, such as "37"."""
        return str(max(self.numbers))

    @property
    def id(self) -> str:
        """Digest of problem and answer."""
        return problem_id(self.problem, self.answer)


@dataclass(frozen=True)
class ProblemSets:
    """The problems to train on by reward, those to measure on, and those to warm up on; no two sets share a problem."""

    train: tuple[Comparison, ...]
    held_out: tuple[Comparison, ...]
    warm_up: tuple[Comparison, ...]


def problem_sets(seed: int, num_train: int = 320, num_held_out: int = 256, num_warm_up: int = 4096) -> ProblemSets:
    """Write three disjoint sets of problems, the same ones for the same seed.

    Not even the same four numbers in another order stand in two sets. Raises ValueError if so many problems cannot be
    written.
    """
    wanted, possible = num_train + num_held_out + num_warm_up, math.comb(len(NUMBERS), 4)
    if wanted > possible:
        raise ValueError(
            f"{wanted} problems are wanted, but only {possible} choices of four numbers exist; ask for fewer"
        )
    rng = random.Random(seed)
    written: dict[frozenset[int], Comparison] = {}
    while len(written) < wanted:
        first, second, third, fourth = rng.sample(NUMBERS, 4)
        numbers = (first, second, third, fourth)
        written.setdefault(frozenset(numbers), Comparison(numbers))
    problems = tuple(written.values())
    taken = num_train + num_held_out
    return ProblemSets(problems[:num_train], problems[num_train:taken], problems[taken:])


def guessed_response(comparison: Comparison, rng: random.Random) -> str:
    """Write a well-formed response that names any of the four numbers: right in one case of four."""
    return rng.choice(PHRASES).format(rng.choice(comparison.numbers))
