"""How many responses an engine is given at once: by what it has been seen to hold."""

import math

from actor.engine.interface import Engine, EngineLoad
from dcpo_async.protocol.messages import Welcome
from dcpo_async.protocol.session import ActorSession
from dcpo_async.records import Lease

FULL_SHARE = 0.95
"""Of the KV cache: above it no larger target is tried."""
SLACK = 1.25
"""In flight for each that has a place in the cache, so that one waits wherever a place comes up."""


class Capacity:
    """A target for the responses in flight, set anew after each round. Pure: counts go in, a number comes out.

    A *round* lasts until as many responses have ended as the target counts, which is when all that was in flight at its
    beginning has been replaced: a change shows its effect then, and not sooner. Counted in responses, the pace is the
    engine's own.

    - A preemption in it means that the cache was full. The target becomes a quarter more than those that had a place in
      the cache, on the average of the round: fewer would leave places empty now and then, more would only wait, with
      leases that another actor could work on, and be preempted again and again.
    - Without one, a target that was reached rises by a quarter, by a group at least, while the cache is not full.
    - A target that was not reached, because leases were scarce, stays: nothing was tried.

    It never exceeds the cap, and one group is always let in: vLLM itself makes room for it. It begins at the cap, since
    how long responses will be nobody knows, and a preemption costs no more than computing a response's keys again.

    Example, group_size 16 and cap 1024: a round of 1024 responses with preemptions and 560 of them in the cache makes
    704 (1.25 · 560 = 700 in whole groups); a round of 704 without, at 75 % of the cache, makes 880.

    Args:
        group_size: G; the target is a multiple of it.
        cap: most responses in flight, as the learner says; a multiple of G.
    """

    def __init__(self, group_size: int, cap: int) -> None:
        self._group_size, self._cap = group_size, cap
        self.target = cap
        self._preemptions = 0
        self._ended = self._sum_running = self._most_in_flight = 0
        self._largest_share, self._was_full = 0.0, False

    def response_ended(self, load: EngineLoad, num_in_flight: int) -> int:
        """A response has ended, which is when room comes up.

        Args:
            load: of the engine now.
            num_in_flight: responses asked for and not ended, those that wait within the engine included.

        Returns:
            The target.
        """
        # An engine that was started anew counts anew.
        self._was_full |= load.preemptions > self._preemptions
        self._preemptions = load.preemptions
        self._ended += 1
        self._sum_running += load.num_running
        self._most_in_flight = max(self._most_in_flight, num_in_flight)
        self._largest_share = max(self._largest_share, load.kv_cache_share)
        if self._ended >= self.target:
            self._end_round()
        return self.target

    def _end_round(self) -> None:
        was_reached = self._most_in_flight + self._group_size > self.target
        if self._was_full:
            self.target = self._allowed(SLACK * self._sum_running / self._ended)
        elif was_reached and self._largest_share < FULL_SHARE:
            self.target = self._allowed(max(SLACK * self.target, self.target + self._group_size))
        self._ended = self._sum_running = self._most_in_flight = 0
        self._largest_share, self._was_full = 0.0, False

    def _allowed(self, target: float) -> int:
        """In whole groups, rounded up: a lease is asked for when places for all its responses are free."""
        return min(self._cap, math.ceil(target / self._group_size) * self._group_size) or self._group_size


class Places:
    """The places of an engine, as its session offers them: each response that ends gives one back.

    Args:
        engine: whose load decides.
        session: that asks for leases.
        welcome: says how large groups are, and the cap.
    """

    def __init__(self, engine: Engine, session: ActorSession, welcome: Welcome) -> None:
        self.engine, self._session = engine, session
        group_size = welcome.sampling.group_size
        self._capacity = Capacity(group_size, cap=welcome.actor.groups_in_flight * group_size)

    def open(self) -> None:
        """The engine runs: leases may be asked for."""
        self._session.capacity = self._capacity.target

    def ended(self, lease: Lease, num_tokens: int) -> None:
        """A response to a lease has ended, whatever the others of its group still do."""
        load, session = self.engine.load, self._session
        session.response_ended(lease, num_tokens)
        session.preemptions = load.preemptions
        session.capacity = self._capacity.response_ended(load, session.num_responses)
