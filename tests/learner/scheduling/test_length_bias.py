"""What is handed over and taken back selects no lengths: a fleet by the second, with long-tailed responses."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest

from dcpo_async.records import LeaseName
from learner.scheduling.batches import Awaited, fill
from learner.scheduling.leases import LeaseTable, Slot, SlotState
from learner.scheduling.progress import Progress
from learner.scheduling.staleness import StalenessGate

LONGEST, GATE, PLACES = 4096, StalenessGate(max_lag=4, groups_per_step=8), 4
MEDIAN, SIGMA = 200.0, 1.0


def length_of(position: int, attempt: int) -> int:
    """Log-normal; the engine draws by position alone, as `group_seed` has it, and attempt is 0."""
    drawn = np.random.default_rng([position, attempt]).lognormal(math.log(MEDIAN), SIGMA)
    return int(np.clip(drawn, 1, LONGEST))


@dataclass
class Work:
    slot: Slot
    attempt: int
    length: int
    done: float = 0.0


@dataclass
class Fleet:
    """Actors by name with tokens a second; a trainer that takes no time; weights that are everywhere at once.

    Attributes:
        trained: length of the response at each position, in the order of training.
    """

    speeds: dict[bytes, float]
    draws_anew: bool = False
    table: LeaseTable = field(default_factory=lambda: LeaseTable([], 0))
    progress: Progress = field(default_factory=lambda: Progress(LONGEST, 120.0, batches_open=5, fair_share=PLACES))
    work: dict[bytes, list[Work]] = field(default_factory=dict)
    trained: dict[int, int] = field(default_factory=dict)
    lengths: dict[int, int] = field(default_factory=dict)
    step: int = 0
    num_handed_over: int = 0
    num_taken_back: int = 0

    def run(self, seconds: int) -> None:
        self.work = {name: [] for name in self.speeds}
        for now in range(seconds):
            for name in self.speeds:
                self.generate(name, float(now))
            self.progress.look()
            for name, held in list(self.table.held.items()):
                assert name is not None
                for late in self.progress.stalled(name, list(held.values()), float(now)):
                    self.table.take_back(late.slot.position, shun_until=now + 30.0)
                    self.num_taken_back += 1
            self.train(float(now))
            self.grant(float(now))

    def generate(self, name: bytes, now: float) -> None:
        mine = [work for work in self.work[name] if work.slot.holder == name and work.slot.attempt == work.attempt]
        for work in mine:
            work.done += self.speeds[name]
            if work.done >= work.length:
                slot = work.slot
                self.progress.finished(
                    name, [work.length], max(0, work.length - slot.tokens), now - slot.leased_at, now
                )
                self.table.accept(slot.position, slot.weights_step)
                self.lengths[slot.position] = work.length
        self.work[name] = [work for work in mine if work.done < work.length]
        if now % 3 == 0:
            held = [LeaseName(work.slot.position, work.attempt) for work in self.work[name]]
            grown = self.table.heartbeat(name, held, [int(work.done) for work in self.work[name]], now)
            self.progress.heard(name, "generating" if held else "idle", len(held), len(held), grown, now)

    def train(self, now: float) -> None:
        while True:
            filled = fill(self.table.open_slots, self.step, GATE)
            if not isinstance(filled, Awaited):
                self.table.remove(filled)
                self.trained |= {position: self.lengths[position] for position in filled}
                self.step += 1
                self.progress.batches_filled(1, now)
            elif not (filled.is_due and filled.slot and self.hand_over(filled.slot, now)):
                return

    def hand_over(self, slot: Slot, now: float) -> bool:
        idle = [name for name in self.speeds if len(self.work[name]) < PLACES]
        sooner = [name for name in idle if self.progress.is_sooner(slot, name, now)]
        if not sooner:
            return False
        slot.num_handed_over += 1
        self.num_handed_over += 1
        self.table.take_back(slot.position, shun_until=now + 30.0)
        self.lease(slot, sooner[0], now)
        return True

    def grant(self, now: float) -> None:
        for _ in range(PLACES):
            for name in self.speeds:
                held = len(self.table.held.get(name, ()))
                if len(self.work[name]) >= PLACES or not self.progress.allowed(name, held, now):
                    continue
                number, slot = self.table.next_to_lease()
                if GATE.oldest_step(number, self.step) > self.step or (slot and slot.is_shunning(name, now)):
                    continue
                position = self.table.next_position
                self.lease(slot or self.table.open_new(position, 1), name, now)
                self.progress.granted(name, now)

    def lease(self, slot: Slot, name: bytes, now: float) -> None:
        self.table.lease(slot, name, self.step, now)
        length = length_of(slot.position, slot.attempt if self.draws_anew else 0)
        self.work[name].append(Work(slot, slot.attempt, length))


EQUAL = {b"%d" % number: 20.0 for number in range(9)}
WITH_A_SLOW_ONE = {b"slow": 20.0 / 60, **EQUAL}


def test_in_a_fleet_of_equals_nothing_is_handed_over_or_taken_back_however_long_it_is() -> None:
    fleet = Fleet(EQUAL)
    fleet.run(4000)
    assert (fleet.num_handed_over, fleet.num_taken_back) == (0, 0)
    assert len(fleet.trained) > 1000
    assert max(fleet.trained.values()) > 10 * MEDIAN


def test_beside_a_slow_actor_every_visit_is_trained_with_the_length_that_it_has_without_one() -> None:
    fleet = Fleet(WITH_A_SLOW_ONE)
    fleet.run(4000)
    assert fleet.num_handed_over > 0
    assert SlotState.LEASED in {slot.state for slot in fleet.table.open_slots}
    oldest = min(slot.position for slot in fleet.table.open_slots)
    assert sorted(position for position in fleet.trained if position < oldest) == list(range(oldest))
    assert all(length == length_of(position, 0) for position, length in fleet.trained.items())


def test_a_slow_actor_costs_less_than_a_tenth_of_the_steps() -> None:
    alone, beside = Fleet(EQUAL), Fleet(WITH_A_SLOW_ONE)
    for fleet in (alone, beside):
        fleet.run(4000)
    assert beside.step > 0.9 * alone.step


@pytest.mark.parametrize("slow", [20.0 / 60, 4.0])
def test_even_if_each_attempt_drew_anew_lengths_would_stay_what_they_are(slow: float) -> None:
    """They do not draw anew; this bounds what could come of weights that are other ones by then."""
    fleet = Fleet({b"slow": slow, **EQUAL}, draws_anew=True)
    fleet.run(4000)
    oldest = min(slot.position for slot in fleet.table.open_slots)
    logs = np.log([length for position, length in fleet.trained.items() if position < oldest])
    first_draws = np.log([length_of(position, 1) for position in range(oldest)])
    assert abs(logs.mean() - first_draws.mean()) < 0.02 * SIGMA
