import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actor.capacity import Capacity
from actor.engine.interface import EngineLoad

G = 16


def after(capacity: Capacity, num_ended: int, load: EngineLoad, in_flight: int) -> int:
    for _ in range(num_ended):
        capacity.response_ended(load, in_flight)
    return capacity.target


def test_it_begins_at_the_cap_and_stays_there_while_nothing_is_preempted() -> None:
    capacity = Capacity(G, cap=1024)
    assert capacity.target == 1024
    assert after(capacity, 5000, EngineLoad(1024, 0.9, 0), 1024) == 1024


def test_after_a_round_with_a_preemption_it_is_a_quarter_more_than_had_a_place() -> None:
    capacity = Capacity(G, cap=1024)
    assert after(capacity, 1023, EngineLoad(num_running=560, kv_cache_share=1.0, preemptions=1), 1024) == 1024
    assert after(capacity, 1, EngineLoad(560, 0.98, 1), 1024) == 704


def test_a_round_that_was_full_of_responses_and_without_preemption_raises_it_by_a_quarter() -> None:
    capacity = Capacity(G, cap=1024)
    after(capacity, 1024, EngineLoad(560, 1.0, 1), 1024)
    assert after(capacity, 703, EngineLoad(700, 0.75, 1), 700) == 704
    assert after(capacity, 1, EngineLoad(700, 0.75, 1), 700) == 880
    assert after(capacity, 880, EngineLoad(870, 0.8, 1), 870) == 1024


def test_a_full_cache_is_not_asked_to_hold_more() -> None:
    capacity = Capacity(G, cap=1024)
    after(capacity, 1024, EngineLoad(560, 1.0, 1), 1024)
    assert after(capacity, 5000, EngineLoad(700, 0.96, 1), 700) == 704


def test_where_leases_are_scarce_it_stays_since_nothing_was_tried() -> None:
    capacity = Capacity(G, cap=1024)
    after(capacity, 1024, EngineLoad(560, 1.0, 1), 1024)
    assert after(capacity, 5000, EngineLoad(300, 0.4, 1), 300) == 704


def test_an_engine_that_was_started_anew_counts_from_nought() -> None:
    capacity = Capacity(G, cap=64)
    after(capacity, 64, EngineLoad(25, 1.0, 9), 64)
    assert capacity.target == 32
    assert after(capacity, 32, EngineLoad(12, 0.5, 0), 12) == 32
    assert after(capacity, 32, EngineLoad(12, 1.0, 1), 32) == 16


loads = st.tuples(st.builds(EngineLoad, st.integers(0, 200), st.floats(0, 1), st.integers(0, 50)), st.integers(0, 200))


@given(st.integers(1, 20), st.integers(1, 12), st.lists(loads, max_size=300))
def test_whatever_an_engine_tells_it_is_whole_groups_between_one_and_the_cap(
    group_size: int, groups: int, told: list[tuple[EngineLoad, int]]
) -> None:
    capacity = Capacity(group_size, cap=groups * group_size)
    for load, in_flight in told:
        before = capacity.target
        target = capacity.response_ended(load, in_flight)
        assert target % group_size == 0
        assert group_size <= target <= groups * group_size
        assert target == before or target <= max(before, 200) * 1.25 + group_size


# ---- with an engine whose cache has an end


@dataclass
class Cache:
    """An engine's cache, scheduled as vLLM does: first come, first served; the last to come loses its place.

    Attributes:
        size: tokens that fit.
        running, waiting: [tokens so far, length] of each response.
        preempted: and computed again; with each the tokens that were lost.
    """

    size: int
    running: list[list[int]] = field(default_factory=list)
    waiting: list[list[int]] = field(default_factory=list)
    preempted: list[int] = field(default_factory=list)

    @property
    def used(self) -> int:
        return sum(tokens for tokens, _ in self.running)

    def step(self) -> int:
        """A token for each that runs; returns how many ended."""
        is_short = False
        while self.used + len(self.running) > self.size and len(self.running) > 1:
            self.waiting.insert(0, self.running.pop())
            self.preempted.append(self.waiting[0][0])
            is_short = True
        while not is_short and self.waiting and self.used + len(self.running) + self.waiting[0][0] + 1 <= self.size:
            self.running.append(self.waiting.pop(0))
        for response in self.running:
            response[0] += 1
        before = len(self.running)
        self.running = [response for response in self.running if response[0] < response[1]]
        return before - len(self.running)

    def load(self) -> EngineLoad:
        return EngineLoad(len(self.running), self.used / self.size, len(self.preempted))


def serve(cache: Cache, capacity: Capacity | None, cap: int, seed: int, steps: int) -> tuple[int, int]:
    """Ended responses of the last half, and their tokens that were lost to preemptions."""
    chance, ended, target, lost_before = random.Random(seed), 0, cap, 0
    for step in range(steps):
        while len(cache.running) + len(cache.waiting) + G <= target:
            cache.waiting += [[0, 1 + int(chance.lognormvariate(3.0, 0.8))] for _ in range(G)]
        just_ended = cache.step()
        for _ in range(just_ended):
            if capacity is not None:
                in_flight = len(cache.running) + len(cache.waiting)
                target = capacity.response_ended(cache.load(), in_flight)
        if step < steps // 2:
            lost_before = sum(cache.preempted)
        else:
            ended += just_ended
    return ended, sum(cache.preempted) - lost_before


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_it_finds_what_a_small_cache_holds_and_loses_less_to_preemptions_than_it_leaves_empty(seed: int) -> None:
    cap, size = 256, 2000
    ended_without, lost_without = serve(Cache(size), None, cap, seed, steps=3000)
    cache, capacity = Cache(size), Capacity(G, cap)
    ended, lost = serve(cache, capacity, cap, seed, steps=3000)
    # A response in flight takes some 26 tokens of the cache, which thus holds 76.
    assert 64 <= capacity.target <= 144
    assert lost < 0.6 * lost_without
    assert ended > 0.93 * ended_without


def test_a_cache_that_holds_the_cap_is_used_whole() -> None:
    capacity = Capacity(G, cap=64)
    serve(Cache(100_000), capacity, 64, seed=0, steps=1000)
    assert capacity.target == 64
