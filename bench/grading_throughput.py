"""Verdicts per second and agreement, ours and math-verify's: `python bench/grading_throughput.py --data FILE …`."""

import argparse
import asyncio
import json
import logging
import multiprocessing
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dcpo_async.grading import GradingPool, grade

NUM_WORKERS = 2
TIMEOUT_SECONDS = 5.0
SENTENCES = (
    "Adding up what we found, the answer is $\\boxed{ANSWER}$.",
    "Let me check that once more. Yes, it holds.\n\n**Final answer:** $\\boxed{ANSWER}$",
    "So we get\n\\[\\boxed{ANSWER}\\]",
)


class Pair(NamedTuple):
    """A response, the reference it is graded against, and whether it is right."""

    source: str
    response: str
    reference: str
    label: bool


class System(NamedTuple):
    """One way to grade all pairs."""

    name: str
    grade_all: Callable[[list[Pair]], list[bool]]


def main() -> None:
    """Build pairs, time every system in turn, print figures and agreement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="JSON lines with the field `answer`")
    parser.add_argument("--limit", type=int, default=300, help="answers taken from each file")
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    sets = {path.stem: read_answers(path)[: options.limit] for path in options.data} or made_answers(options.limit)
    pairs = [pair for name, answers in sets.items() for pair in pairs_of(name, answers)]
    print(f"{len(pairs)} pairs from {', '.join(sets)}; {sum(pair.label for pair in pairs)} of them right")

    silence_math_verify()
    with (
        multiprocessing.get_context("spawn").Pool(NUM_WORKERS, silence_math_verify) as processes,
        PoolOnALoop() as pool,
    ):
        systems = [
            System("ours, in-process", lambda pairs: [ours(pair) for pair in pairs]),
            System("math-verify, in-process", lambda pairs: [math_verify(pair) for pair in pairs]),
            System(f"ours, GradingPool of {NUM_WORKERS}", pool.grade_all),
            System(f"math-verify, {NUM_WORKERS} processes", lambda pairs: processes.map(math_verify, pairs)),
        ]
        for system in systems:
            system.grade_all(pairs[:: max(1, len(pairs) // 50)])
        rates, verdicts = measured(systems, pairs, options.repetitions)
    print_rates(rates)
    for source in sets:
        print_agreement(source, pairs, verdicts[systems[0].name], verdicts[systems[1].name])


def read_answers(path: Path) -> list[str]:
    """The answers of a problem set, in its order."""
    return [json.loads(line)["answer"] for line in path.read_text().splitlines()]


def made_answers(limit: int) -> dict[str, list[str]]:
    """Answers such as the two kinds of sets have, for machines without them."""
    chance = random.Random(0)

    def math_answer() -> str:
        a, b, c = (chance.randint(2, 99) for _ in range(3))
        forms = (f"{a}", rf"\frac{{{a}}}{{{b}}}", rf"{a}\sqrt{{{b}}}", rf"{a}\pi", f"({a},-{b})", rf"[{a},\infty)")
        forms += (f"{a}x^2-{b}x+{c}", f"{a}+{b}i", f"{a}, {b}", rf"\begin{{pmatrix}} {a} \\ {b} \end{{pmatrix}}")
        return chance.choice(forms)

    return {
        "made like GSM8K": [str(chance.randint(1, 5000)) for _ in range(limit)],
        "made like MATH": [math_answer() for _ in range(limit)],
    }


def pairs_of(source: str, answers: list[str]) -> list[Pair]:
    """Each answer against itself, in another spelling, against the next, and against a near miss."""
    pairs = []
    for number, (answer, following) in enumerate(zip(answers, answers[1:] + answers[:1], strict=True)):
        sentence = SENTENCES[number % len(SENTENCES)]
        right, wrong = respelled(answer), near_misses(answer)
        # Answers of the same digits may be equal, as 7 and 7\%.
        if re.findall(r"\d", answer) != re.findall(r"\d", following):
            wrong.append(following)
        pairs += [Pair(source, sentence.replace("ANSWER", text), answer, True) for text in [answer, *right]]
        pairs += [Pair(source, sentence.replace("ANSWER", text), answer, False) for text in wrong]
    return pairs


def respelled(answer: str) -> list[str]:
    """Other spellings that are surely right."""
    if re.fullmatch(r"-?\d+", answer):
        return [f"x = {answer}", f"{int(answer):,}.0"]
    if fraction := re.fullmatch(r"(-?)\\[dt]?frac\{(\d+)\}\{(\d+)\}", answer):
        sign, above, below = fraction.groups()
        return [f"{sign}{above}/{below}", rf"{sign}\dfrac{{{above}}}{{{below}}}"]
    return []


def near_misses(answer: str) -> list[str]:
    """Answers that are surely wrong, though only just."""
    if re.fullmatch(r"-?\d+", answer):
        return [str(int(answer) + 1), rf"{answer} \text{{ or }} {int(answer) + 1}"]
    if fraction := re.fullmatch(r"-?\\[dt]?frac\{(\d+)\}\{(\d+)\}", answer):
        above, below = fraction.groups()
        return [f"{above}.{below}", rf"\frac{{{int(above) + int(below)}}}{{{below}}}"]
    return []


class PoolOnALoop:
    """A grading pool and the event loop it belongs to."""

    def __enter__(self) -> "PoolOnALoop":
        self._runner = asyncio.Runner()
        self._pool = GradingPool(NUM_WORKERS, TIMEOUT_SECONDS)
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.close()
        self._runner.close()

    def grade_all(self, pairs: list[Pair]) -> list[bool]:
        """The verdicts of many responses in flight at once, as in an actor."""
        return self._runner.run(self._grade_all(pairs))

    async def _grade_all(self, pairs: list[Pair]) -> list[bool]:
        verdicts = await asyncio.gather(*(self._pool.grade(pair.response, pair.reference) for pair in pairs))
        return [verdict.correct for verdict in verdicts]


def ours(pair: Pair) -> bool:
    """Our verdict, in this process."""
    return grade(pair.response, pair.reference).correct


def math_verify(pair: Pair) -> bool:
    """math-verify's verdict as most systems ask for it, its own time-outs on."""
    # Imported here so that the workers of our pool, which import this module, start as they do elsewhere.
    from math_verify import parse, verify

    return bool(verify(parse(f"\\boxed{{{pair.reference}}}"), parse(pair.response)))


def silence_math_verify() -> None:
    """It logs each answer that it cannot parse."""
    for name in ("math_verify", "latex2sympy2_extended"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def measured(
    systems: list[System], pairs: list[Pair], repetitions: int
) -> tuple[dict[str, list[float]], dict[str, list[bool]]]:
    """Verdicts per second of each repetition, the systems taking turns, and the verdicts."""
    rates: dict[str, list[float]] = {system.name: [] for system in systems}
    verdicts = {}
    for repetition in range(repetitions):
        for system in systems:
            start = time.perf_counter()
            verdicts[system.name] = system.grade_all(pairs)
            rates[system.name].append(len(pairs) / (time.perf_counter() - start))
        print(f"repetition {repetition + 1} of {repetitions} done", flush=True)
    return rates, verdicts


def print_rates(rates: dict[str, list[float]]) -> None:
    """Median and range of each system, and the ratios of medians on as many processes."""
    print("\n| verdicts per second | median | least | most |\n|---|---|---|---|")
    for name, found in rates.items():
        print(f"| {name} | {statistics.median(found):,.0f} | {min(found):,.0f} | {max(found):,.0f} |")
    one, their_one, several, their_several = (statistics.median(found) for found in rates.values())
    print(
        f"\nratio of medians: {one / their_one:.1f} in-process, {several / their_several:.1f} on {NUM_WORKERS} workers"
    )


def print_agreement(source: str, pairs: list[Pair], our_verdicts: list[bool], their_verdicts: list[bool]) -> None:
    """Who was right how often on the pairs of one source, and the pairs that only math-verify had right."""
    outcomes: Counter[tuple[bool, bool]] = Counter()
    only_theirs = []
    for pair, our_verdict, their_verdict in zip(pairs, our_verdicts, their_verdicts, strict=True):
        if pair.source == source:
            outcome = (our_verdict == pair.label, their_verdict == pair.label)
            outcomes[outcome] += 1
            if outcome == (False, True):
                only_theirs.append(pair)
    total = outcomes.total()
    our_accuracy = (outcomes[True, True] + outcomes[True, False]) / total
    their_accuracy = (outcomes[True, True] + outcomes[False, True]) / total
    print(
        f"\n{source}: {total} pairs; both right {outcomes[True, True]}, only ours {outcomes[True, False]}, "
        f"only math-verify {outcomes[False, True]}, neither {outcomes[False, False]}; "
        f"accuracy ours {our_accuracy:.2%}, math-verify {their_accuracy:.2%}"
    )
    for pair in only_theirs:
        print(f"  only math-verify: {pair.response!r} against {pair.reference!r}")


if __name__ == "__main__":
    main()
