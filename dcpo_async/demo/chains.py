r"""Problems that ask for the end of a chain of operations on states, and a table of which a guess knows a part.

An operation is a random permutation of the states. The problem "3 f0 f5" begins in state 3, applies f0, then f5; a
response names each state in turn and boxes the last, as in "9 \boxed{ 7 }". Whoever knows the share p of the facts that
a chain needs, and guesses the rest evenly, is right in about 1/states of the cases for each fact that is missing: so
pass rates fall geometrically with the length of the unknown part (as in the studies of arXiv 2602.14872 and
2602.08281), and what was learned can be asked for fact by fact.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

from dcpo_async.demo.problems import problem_id
from dcpo_async.durable import write_json
from dcpo_async.errors import ConfigError

TASK_NAME = "task.json"


@dataclass(frozen=True, slots=True)
class ChainSizes:
    """How large the task is.

    Attributes:
        states, operations: facts are their product.
        longest: operations in the longest chain. Lengths from 1 are drawn evenly, but a problem counts once, and those
            to train on come first: few of the shortest are left to measure on. By default 14, 39 and 47 % of the former
            have 1, 2 and 3 operations, and 1, 39 and 60 % of the latter.
        known: share of the facts that a warm model is taught.
        prompts, held_out: problems to train on and to measure on, all different.

    Raises ConfigError for sizes that no task has.
    """

    states: int = 12
    operations: int = 8
    longest: int = 3
    known: float = 0.5
    prompts: int = 640
    held_out: int = 256

    def __post_init__(self) -> None:
        for name, least in (("states", 2), ("operations", 1), ("longest", 1), ("prompts", 1), ("held_out", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} {getattr(self, name)}: it must be at least {least}")
        if not 0 <= self.known < 1:
            raise ConfigError(f"known {self.known}: a share from 0 to below 1; with 1 nothing is left to learn")
        # Beyond half of them the draw of different ones would take long, and its lengths would be far from even.
        possible = sum(self.states * self.operations**length for length in range(1, self.longest + 1))
        if 2 * (self.prompts + self.held_out) > possible:
            raise ConfigError(
                f"prompts {self.prompts} and held_out {self.held_out}: together at most half of the {possible} chains "
                "that there are; ask for fewer, or for more states, operations or length"
            )

    @classmethod
    def read(cls, words: Sequence[str]) -> Self:
        """The defaults with words such as "states=16" applied; raises ConfigError for others."""
        kinds: dict[str, Callable[[str], int | float]] = {
            field.name: float if field.name == "known" else int for field in fields(cls)
        }
        values: dict[str, int | float] = {}
        for word in words:
            name, _, value = word.partition("=")
            if name not in kinds:
                raise ConfigError(f"size {word!r}: write NAME=VALUE with one of {', '.join(kinds)}")
            try:
                values[name] = kinds[name](value)
            except ValueError:
                raise ConfigError(f"size {word!r}: {value!r} is not a number that {name} can be") from None
        return cls(**values)  # type: ignore[arg-type]

    @property
    def words(self) -> list[str]:
        """What `read` reads."""
        return [f"{name}={value}" for name, value in asdict(self).items()]


@dataclass(frozen=True, slots=True)
class Chain:
    """One problem.

    Attributes:
        start: the first state.
        operations: in the order in which they are applied, at least one.
        states: after each of them; the last is the answer.
    """

    start: int
    operations: tuple[int, ...]
    states: tuple[int, ...]

    @property
    def problem(self) -> str:
        """As a prompt asks it, such as "3 f0 f5"."""
        return " ".join([str(self.start), *(f"f{operation}" for operation in self.operations)])

    @property
    def answer(self) -> str:
        """The last state, such as "7"."""
        return str(self.states[-1])

    @property
    def id(self) -> str:
        """Digest of problem and answer."""
        return problem_id(self.problem, self.answer)


@dataclass(frozen=True, slots=True)
class FactTable:
    """The facts, and which of them a warm model is taught.

    Attributes:
        after: by operation and state, the state that follows.
        known: by operation and state.
    """

    after: tuple[tuple[int, ...], ...]
    known: tuple[tuple[bool, ...], ...]

    @classmethod
    def drawn(cls, sizes: ChainSizes, rng: random.Random) -> Self:
        """Permutations and known facts from a generator of random numbers."""
        states = range(sizes.states)
        after = tuple(tuple(rng.sample(states, sizes.states)) for _ in range(sizes.operations))
        return cls(after, tuple(tuple(rng.random() < sizes.known for _ in states) for _ in after))

    def chain(self, start: int, operations: Sequence[int]) -> Chain:
        """The problem that begins so, with its solution."""
        states, state = [], start
        for operation in operations:
            state = self.after[operation][state]
            states.append(state)
        return Chain(start, tuple(operations), tuple(states))

    def draw(self, longest: int, rng: random.Random) -> Chain:
        """A problem of 1 to `longest` operations."""
        length = rng.randint(1, longest)
        start = rng.randrange(len(self.after[0]))
        return self.chain(start, [rng.randrange(len(self.after)) for _ in range(length)])

    def facts(self) -> list[tuple[Chain, bool]]:
        """Every fact as a chain of one, and whether a warm model is taught it."""
        return [
            (self.chain(state, [operation]), known)
            for operation, row in enumerate(self.known)
            for state, known in enumerate(row)
        ]

    def guessed_response(self, chain: Chain, rng: random.Random) -> str:
        """A well-formed response: a state that follows by a known fact is right, any other is guessed evenly."""
        states, state = [], chain.start
        for operation in chain.operations:
            row = self.after[operation]
            state = row[state] if self.known[operation][state] else rng.randrange(len(row))
            states.append(state)
        *earlier, last = states
        return " ".join([*map(str, earlier), rf"\boxed{{ {last} }}"])


@dataclass(frozen=True, slots=True)
class ChainTask:
    """A task, the same one for the same sizes and seed.

    Attributes:
        train, held_out: different problems all.
    """

    sizes: ChainSizes
    seed: int
    table: FactTable
    train: tuple[Chain, ...]
    held_out: tuple[Chain, ...]

    @classmethod
    def drawn(cls, sizes: ChainSizes, seed: int) -> Self:
        """Draw the table, then the problems."""
        rng = random.Random(seed)
        table = FactTable.drawn(sizes, rng)
        chains: dict[str, Chain] = {}
        while len(chains) < sizes.prompts + sizes.held_out:
            chain = table.draw(sizes.longest, rng)
            chains.setdefault(chain.problem, chain)
        problems = tuple(chains.values())
        return cls(sizes, seed, table, problems[: sizes.prompts], problems[sizes.prompts :])

    def write(self, folder: Path) -> None:
        """Note in a folder, which is made if need be, what draws the task again."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / TASK_NAME, {"sizes": self.sizes.words, "seed": self.seed})

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The task that a folder was made for."""
        noted = json.loads((folder / TASK_NAME).read_text())
        return cls.drawn(ChainSizes.read(noted["sizes"]), noted["seed"])
