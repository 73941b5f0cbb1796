"""Input made to hang, crash or fill the grader: each gets a verdict in time, and nothing is left behind."""

import gc
import multiprocessing
import random
import time
from collections.abc import Iterator

import psutil
import pytest

from dcpo_async.grading import Extraction, GradingPool, Verdict, grade
from dcpo_async.grading.algebra import TIMEOUT_SECONDS as GRADE_TIMEOUT_SECONDS
from dcpo_async.grading.grader import quick_verdict
from tests.grading.hostile import LONG, ONE_NUMBER, ROLES, SHORT, boxed, drawn_by_hypothesis, slips_of_a_pen

TIMEOUT_SECONDS = 0.5
GRACE_SECONDS = 1.0
# What our own comparison may take of the actor's event loop.
QUICK_SECONDS = 0.25

NUM_RANDOM = 10_000
# sympy fills its caches over some thousand inputs; from then on memory must stay.
NUM_WARM = 3_000
MAX_GROWTH_BYTES = 32 * 2**20

NEEDS_ALGEBRA = (r"\boxed{\int_0^x 2t\,dt + 1}", "x^2+1")


@pytest.fixture
def pool() -> Iterator[GradingPool]:
    pool = GradingPool(num_workers=1, timeout_seconds=TIMEOUT_SECONDS, extraction="last_number")
    yield pool
    pool.close()


async def seconds_to_verdict(pool: GradingPool, response: str, reference: str) -> float:
    """Seconds by the clock; a killed worker's successor is waited for outside of them."""
    start = time.monotonic()
    verdict = await pool.grade(response, reference)
    seconds = time.monotonic() - start
    assert isinstance(verdict, Verdict)
    if verdict.reason in ("timeout", "crashed"):
        await pool.grade(*NEEDS_ALGEBRA)
    return seconds


async def is_late(pool: GradingPool, response: str, reference: str) -> bool:
    """Whether it takes too long three times running: on a busy machine, once may be the fault of others."""
    limit = TIMEOUT_SECONDS + GRACE_SECONDS
    for _ in range(3):
        if await seconds_to_verdict(pool, response, reference) <= limit:
            return False
    return True


def resident_bytes() -> int:
    """Memory of this process and of the pool's workers."""
    gc.collect()
    workers = [psutil.Process(child.pid) for child in multiprocessing.active_children()]
    return sum(process.memory_info().rss for process in [psutil.Process(), *workers])


@pytest.mark.system
@pytest.mark.timeout(300)
@pytest.mark.parametrize("role", ROLES)
async def test_each_hostile_input_gets_a_verdict_in_time(pool: GradingPool, role: str) -> None:
    await pool.grade(*NEEDS_ALGEBRA)
    pairs = {name: ROLES[role](text) for name, text in [*SHORT.items(), *LONG.items()]}
    assert [name for name, pair in pairs.items() if await is_late(pool, *pair)] == []


@pytest.mark.parametrize("extraction", ["last_number", "last_math"])
@pytest.mark.parametrize("role", ROLES)
def test_no_hostile_input_holds_up_the_event_loop(role: str, extraction: Extraction) -> None:
    held_up = {}
    for name, text in [*SHORT.items(), *LONG.items()]:
        # The other tests' garbage may be collected in the midst of one attempt.
        attempts = (verdict_seconds(role, text, extraction) for _ in range(3))
        seconds = next((spent for spent in attempts if spent <= QUICK_SECONDS), None)
        if seconds is None:
            held_up[name] = text[:100]
    assert held_up == {}


def verdict_seconds(role: str, text: str, extraction: Extraction) -> float:
    start = time.thread_time()
    quick_verdict(*ROLES[role](text), extraction)
    return time.thread_time() - start


@pytest.mark.system
def test_a_hostile_sum_gets_a_verdict_of_grade_in_time() -> None:
    grade(*NEEDS_ALGEBRA)
    assert seconds_of_grade(*ROLES["an answer to an expression"](r"\prod_{n=1}^{10^9} n")) <= (
        GRADE_TIMEOUT_SECONDS + GRACE_SECONDS
    )


def seconds_of_grade(response: str, reference: str) -> float:
    """Seconds by the clock; an interpreter that was ended is replaced outside of them."""
    start = time.monotonic()
    verdict = grade(response, reference, "last_math")
    seconds = time.monotonic() - start
    if verdict.reason in ("timeout", "crashed"):
        grade(*NEEDS_ALGEBRA)
    return seconds


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_ten_thousand_random_inputs_get_verdicts_of_grade_in_time() -> None:
    made_by_hand = [role(text) for text in [*SHORT.values(), *LONG.values()] for role in ROLES.values()]
    drawn = drawn_by_hypothesis(2_000)
    pairs = made_by_hand + drawn + slips_of_a_pen(NUM_RANDOM - len(drawn) - len(made_by_hand))
    assert len(pairs) == NUM_RANDOM
    grade(*NEEDS_ALGEBRA)
    limit = GRADE_TIMEOUT_SECONDS + GRACE_SECONDS
    late = [pair for pair in pairs if seconds_of_grade(*pair) > limit and seconds_of_grade(*pair) > limit]
    assert late == []


@pytest.mark.system
async def test_ten_thousand_random_inputs_get_verdicts_in_time_and_memory_does_not_grow(pool: GradingPool) -> None:
    made_by_hand = [(boxed(text), ONE_NUMBER) for text in [*SHORT.values(), *LONG.values()]]
    drawn = drawn_by_hypothesis(2_000)
    pairs = made_by_hand + drawn + slips_of_a_pen(NUM_RANDOM - len(drawn) - len(made_by_hand))
    assert len(pairs) == NUM_RANDOM
    random.Random(0).shuffle(pairs)
    await pool.grade(*NEEDS_ALGEBRA)
    late = [pair for pair in pairs[:NUM_WARM] if await is_late(pool, *pair)]
    early_bytes = resident_bytes()
    late += [pair for pair in pairs[NUM_WARM:] if await is_late(pool, *pair)]
    assert late == []
    assert resident_bytes() - early_bytes < MAX_GROWTH_BYTES
