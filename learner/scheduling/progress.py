"""Which leases get on, which actors are slow, and what follows. Pure: seconds and counts go in, decisions come out.

Two questions are kept apart. Does a lease get on at all? Its tokens stand still, or it is far older than its holder's
own speed explains for the longest response allowed: it is taken back. Would another actor be sooner? That is decided by
the speeds of both and by how long ago the lease went out, never by how long its responses are: a long response is not
given up for being long, and since a visit that is answered anew meets the same noise (`group_seed`), the answer that
comes instead is as long.
"""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from statistics import median_high
from typing import NamedTuple

from dcpo_async.records import Activity
from learner.scheduling.leases import Slot

HALF_LIFE_SECONDS = 30.0
"""Of what was measured of a speed."""
MEASURED_SECONDS = 10.0
"""At work, after which a speed counts."""
SLOW_RATIO = 2.0
"""An actor is slow when the fleet's median is so many times as fast; below it nothing is handed over either."""
PATIENCE = 5.0
"""Times `stall_seconds` for what is not generation: weights that come in, a start, grading."""
WORKING = ("generating", "idle", "draining")
"""What an actor that holds leases may say of itself without any reason why they stand still."""
AGE_RATIO = 3.0
"""Times the seconds that the longest response takes at its holder's speed: what waiting for a place explains."""
MAX_HANDED_OVER = 2
"""Times that one lease is given to a faster actor."""
PROBE_SECONDS, MAX_PAUSE_SECONDS = 60.0, 3600.0


@dataclass(slots=True)
class Pace:
    """How an actor gets on.

    Attributes:
        activity: as its last heartbeat says.
        heard_at: when that came, in monotonic seconds; None before the first.
        in_flight: responses, as it says.
        tokens, response_seconds: sums that fade; their quotient is the speed of one response among the others.
        seconds_at_work: since it joined.
        group_speed: of the groups that it has finished: tokens of the longest response by the age of the lease; None
            before the first.
        finished_at: when a group of it was last accepted.
        strikes: times that all it held stood still; each group that it finishes takes one off.
        allowance: leases that it may hold after a strike; each group that it finishes adds two.
        paused_until: it gets no lease until then.
        pause: seconds to its next lease where it is too slow to be in time; twice as long each time.
    """

    activity: Activity = "idle"
    heard_at: float | None = None
    in_flight: int = 0
    tokens: float = 0.0
    response_seconds: float = 0.0
    seconds_at_work: float = 0.0
    group_speed: float | None = None
    finished_at: float = -math.inf
    strikes: int = 0
    allowance: int | None = None
    paused_until: float = -math.inf
    pause: float = PROBE_SECONDS

    @property
    def speed(self) -> float | None:
        """Tokens a second of one response; None while too little was seen."""
        if self.seconds_at_work < MEASURED_SECONDS or (self.tokens and self.response_seconds < 1.0):
            return self.group_speed
        return self.tokens / max(self.response_seconds, 1e-3)


class Late(NamedTuple):
    """A lease that is to be taken back, and why."""

    slot: Slot
    reason: str


class Progress:
    """What is known of the progress of all actors.

    Args:
        max_response_tokens: no response is longer.
        stall_seconds: tokens may stand still for so long.
        batches_open: batches' worth of visits that may be open: in so many batches' time a new lease is due.
        fair_share: leases that a session may hold, whatever credit it claims.

    Attributes:
        fleet_speed: median of the measured speeds, as of the last `look`; None while there are none.
        typical_tokens: of the longest response of a group, on the average.
        batch_seconds: between two batches, on the average; None before the second.
    """

    def __init__(self, max_response_tokens: int, stall_seconds: float, batches_open: int, fair_share: int) -> None:
        self._max_tokens, self.stall_seconds = max_response_tokens, stall_seconds
        self._batches_open, self._fair_share = batches_open, fair_share
        self._paces: dict[bytes, Pace] = {}
        self.fleet_speed: float | None = None
        self.typical_tokens = float(max_response_tokens)
        self.batch_seconds: float | None = None
        self._num_groups = 0
        self._batch_at: float | None = None

    def pace(self, session: bytes) -> Pace:
        """Of a session; one that is not known yet begins anew."""
        return self._paces.setdefault(session, Pace())

    def leave(self, session: bytes) -> None:
        """A session is gone."""
        self._paces.pop(session, None)

    # ---- what is seen

    def heard(self, session: bytes, activity: Activity, in_flight: int, num_held: int, grown: int, now: float) -> None:
        """A heartbeat: by how many tokens the session's leases have grown, and how many responses are in flight.

        It is at work when it holds leases and names nothing that keeps it from them, whatever else it says.
        """
        pace = self.pace(session)
        if pace.heard_at is not None:
            seconds = now - pace.heard_at
            fade = 0.5 ** (seconds / HALF_LIFE_SECONDS)
            pace.tokens, pace.response_seconds = pace.tokens * fade + grown, pace.response_seconds * fade
            if grown or (num_held and activity in WORKING and pace.activity in WORKING):
                pace.seconds_at_work += seconds
                pace.response_seconds += seconds * (in_flight + pace.in_flight) / 2
        pace.heard_at, pace.activity, pace.in_flight = now, activity, in_flight

    def finished(self, session: bytes, lengths: Collection[int], grown: int, age: float, now: float) -> None:
        """A group was accepted.

        Args:
            lengths: of its responses, in tokens.
            grown: by how many tokens in all it grew since it was last heard of.
            age: seconds since the lease went out.
        """
        pace, longest = self.pace(session), max(lengths, default=0)
        speed = longest / max(age, 1e-3)
        pace.group_speed = speed if pace.group_speed is None else 0.8 * pace.group_speed + 0.2 * speed
        pace.tokens += grown
        pace.finished_at, pace.strikes, pace.pause = now, max(0, pace.strikes - 1), PROBE_SECONDS
        if pace.allowance is not None:
            pace.allowance += 2
        self._num_groups += 1
        self.typical_tokens += (longest - self.typical_tokens) / min(self._num_groups, 100)

    def batches_filled(self, count: int, now: float) -> None:
        """So many batches have been assigned to their steps since the last call."""
        if self._batch_at is not None:
            seconds = (now - self._batch_at) / count
            self.batch_seconds = seconds if self.batch_seconds is None else 0.8 * self.batch_seconds + 0.2 * seconds
        self._batch_at = now

    def granted(self, session: bytes, now: float) -> None:
        """A lease went out; to an actor that is too slow the next one goes later."""
        pace = self.pace(session)
        if self._num_in_time(pace, 1) == 0:
            pace.paused_until, pace.pause = now + pace.pause, min(2 * pace.pause, MAX_PAUSE_SECONDS)

    # ---- what follows

    def look(self) -> None:
        """Take the speeds of the fleet anew."""
        speeds = [speed for pace in self._paces.values() if (speed := pace.speed) is not None]
        self.fleet_speed = median_high(speeds) if speeds else None

    def slow(self) -> dict[bytes, float]:
        """Sessions whose responses are much slower than those of the fleet, with their speeds."""
        return {session: pace.speed or 0.0 for session, pace in self._paces.items() if self._is_slow(pace)}

    def allowed(self, session: bytes, num_held: int, now: float) -> int:
        """Further leases that a session may get, whatever credit it claims.

        It may hold its fair share; after a strike, what it has finished since then; and one that is slow as many as it
        finishes, at its speed, before a batch would wait for them. Where that is none, it gets one now and then, which
        shows whether it is still so slow.
        """
        pace = self.pace(session)
        if now < pace.paused_until:
            return 0
        most = self._fair_share if pace.allowance is None else min(pace.allowance, self._fair_share)
        if self._is_slow(pace):
            most = min(most, self._num_in_time(pace, num_held) or 1)
        return max(0, most - num_held)

    def is_sooner(self, slot: Slot, other: bytes, now: float) -> bool:
        """Whether another actor would answer a lease sooner, from its beginning, than its holder.

        With speeds h of the holder and o of the other, and t of typical tokens: a lease of age a has some a·h tokens
        and, whatever their number, t more to come, so that the holder takes t/h seconds and the other (a·h + t)/o. At a
        hundredth of the fleet's speed that holds for as long as 99 typical responses take.
        """
        holder = self.pace(slot.holder).speed if slot.holder is not None else None
        speed = self.pace(other).speed
        if holder is None or speed is None or slot.num_handed_over >= MAX_HANDED_OVER:
            return False
        if speed < SLOW_RATIO * holder or speed == 0:
            return False
        return holder == 0 or (now - slot.leased_at) * holder < self.typical_tokens * (speed / holder - 1)

    def stalled(self, session: bytes, held: Collection[Slot], now: float) -> list[Late]:
        """Leases of a session that do not get on; where none of it does, that is a strike.

        A lease that stands still while others of its holder grow may wait for a place in the KV cache: it has as long
        as the longest response takes at the holder's speed.
        """
        pace = self.pace(session)
        patience = self.stall_seconds * (1.0 if pace.activity in WORKING else PATIENCE)
        last_sign = max(pace.finished_at, max((slot.changed_at for slot in held), default=now))
        if held and now - last_sign >= patience:
            pace.strikes += 1
            pause = min(self.stall_seconds * 2.0 ** (pace.strikes - 1), MAX_PAUSE_SECONDS)
            pace.allowance, pace.paused_until = 1, now + pause
            reason = f"its actor ({pace.activity}) has made no token for {now - last_sign:.0f} s"
            return [Late(slot, f"{reason} and gets no lease for {pause:.0f} s") for slot in held]
        return list(self._too_old(pace, held, now))

    def _too_old(self, pace: Pace, held: Iterable[Slot], now: float) -> Iterable[Late]:
        if not pace.speed:
            return
        longest = self._max_tokens / pace.speed
        for slot in held:
            age, still = now - slot.leased_at, now - slot.changed_at
            explained = f"at {pace.speed:.3g} tokens/s the longest response takes {longest:.0f} s"
            if still >= self.stall_seconds * PATIENCE + longest:
                yield Late(slot, f"its tokens have stood still for {still:.0f} s, {explained}")
            elif age >= self.stall_seconds * PATIENCE + AGE_RATIO * longest:
                yield Late(slot, f"it is {age:.0f} s old, {explained}")

    def _is_slow(self, pace: Pace) -> bool:
        speed = pace.speed
        return speed is not None and self.fleet_speed is not None and speed * SLOW_RATIO <= self.fleet_speed

    def _num_in_time(self, pace: Pace, num_held: int) -> int | None:
        """Leases that a slow actor finishes before a batch waits for them; None where it is not slow or not known.

        What it finishes in a while goes by what it has been measured with: so many leases at once take this long.
        """
        if not self._is_slow(pace) or self.batch_seconds is None:
            return None
        seconds = self.typical_tokens / pace.speed if pace.speed else math.inf
        return int(max(1, num_held) * self._batches_open * self.batch_seconds / seconds)
