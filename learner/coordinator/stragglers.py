"""Takes back leases that do not get on, hands over those that another answers sooner, and names who is waited for."""

import logging
from collections.abc import Callable
from typing import Any

from dcpo_async.config import RunConfig
from dcpo_async.limits import OPEN_SHARE
from dcpo_async.protocol.messages import GroupMessage, Heartbeat
from dcpo_async.records import LeaseName
from learner.coordinator.intake import Intake
from learner.scheduling.grants import Rotation
from learner.scheduling.leases import Slot
from learner.scheduling.progress import Late, Progress

log = logging.getLogger(__name__)

SHUN_SECONDS = 30.0
"""For so long a lease that was taken back goes to anybody but the session that had it."""
AGAIN_SECONDS = 0.25
"""Before it is looked once more for somebody who would be sooner."""
TOLD_SECONDS = 30.0
"""A batch that waits for longer is told of, and again each time it has waited twice as long."""


class Stragglers:
    """Applies the policy of `learner/scheduling/progress.py` to the open leases.

    Args:
        config: of the run.
        intake: leases and batches.
        rotation: sessions with credit.
        clock: monotonic seconds.
        describe: a session, for people.
        grant: gives the next lease to a session, under the newest weights.
        revoke: tells a session that a lease is not its any more.
        is_free: whether a session may go on to the newest weights.

    Attributes:
        progress: what is known of each actor.
    """

    def __init__(
        self,
        config: RunConfig,
        intake: Intake,
        rotation: Rotation,
        clock: Callable[[], float],
        describe: Callable[[bytes], str],
        grant: Callable[[bytes], object],
        revoke: Callable[[bytes, LeaseName, str], None],
        is_free: Callable[[bytes], bool],
    ) -> None:
        self._intake, self._rotation, self._clock = intake, rotation, clock
        self._describe, self._grant, self._revoke, self._is_free = describe, grant, revoke, is_free
        self.progress = Progress(
            config.sampling.max_response_tokens,
            config.actor.stall_seconds,
            batches_open=config.admission_window // intake.groups_per_batch,
            fair_share=OPEN_SHARE * config.actor.groups_in_flight,
        )
        intake.hand_over = self._hand_over
        self._num_batches = 0
        self._tried: tuple[LeaseName, float] | None = None
        self._named: set[bytes] = set()
        self._waiting_since: float | None = None
        self._told_after = TOLD_SECONDS

    def use(self, config: RunConfig) -> None:
        """Wait for other times from now on."""
        self.progress.stall_seconds = config.actor.stall_seconds

    def wanted(self, session: bytes, num_leases: int, now: float) -> None:
        """A session has room for this many leases; it gets credit for those that it would finish."""
        num_held = self._num_held(session)
        self._rotation.want(session, min(num_leases, self.progress.allowed(session, num_held, now)))

    def heard(self, session: bytes, heartbeat: Heartbeat, now: float) -> None:
        """A heartbeat; who still works on a lease that another has got is told."""
        grown = self._intake.table.heartbeat(session, heartbeat.held, heartbeat.tokens, now)
        in_flight, num_held = heartbeat.responses_in_flight, self._num_held(session)
        self.progress.heard(session, heartbeat.activity, in_flight, num_held, grown, now)
        for name in heartbeat.held:
            slot = self._intake.table.get(name.position)
            if slot is not None and slot.attempt > name.attempt:
                self._revoke(session, name, "another session has the lease")

    def finished(self, session: bytes, group: GroupMessage, tokens: int, leased_at: float, now: float) -> None:
        """A group was accepted; its lease went out at `leased_at` and was last heard of with so many tokens."""
        grown = max(0, sum(group.lengths) - tokens)
        self.progress.finished(session, group.lengths, grown, now - leased_at, now)

    def left(self, session: bytes) -> None:
        """A session is gone."""
        self._rotation.left(session)
        self.progress.leave(session)
        self._named.discard(session)

    def look(self, now: float) -> None:
        """Once a second: take back what does not get on, name who is slow and who is waited for."""
        self.progress.look()
        if self._intake.num_batches > self._num_batches:
            self.progress.batches_filled(self._intake.num_batches - self._num_batches, now)
            self._num_batches, self._waiting_since = self._intake.num_batches, None
        for session, held in list(self._intake.table.held.items()):
            if session is not None:
                for late in self.progress.stalled(session, list(held.values()), now):
                    self._take_back(session, late, now)
        for session in list(self._rotation):
            self.wanted(session, self._rotation.credit(session), now)
        self._name_slow(now)
        self._tell_of_waiting(now)

    def waiting_for(self, now: float) -> dict[str, Any] | None:
        """What the next batch waits for, and for how long; None while no rank waits for one."""
        awaited = self._intake.awaited
        if awaited is None or self._waiting_since is None:
            return None
        found: dict[str, Any] = {"seconds": round(now - self._waiting_since, 1), "position": None}
        slot = awaited.slot
        if slot is None or slot.holder is None:
            return found
        return found | {
            "position": slot.position,
            "attempt": slot.attempt,
            "holder": self._describe(slot.holder),
            "lease_seconds": round(now - slot.leased_at, 1),
            "tokens": slot.tokens,
            "tokens_per_second": self.progress.pace(slot.holder).speed,
        }

    def _num_held(self, session: bytes) -> int:
        return len(self._intake.table.held.get(session, ()))

    def _take_back(self, session: bytes, late: Late, now: float) -> None:
        slot, name = late.slot, LeaseName(late.slot.position, late.slot.attempt)
        log.warning(
            "lease %d of %s is taken back after %.0f s with %d tokens: %s",
            slot.position,
            self._describe(session),
            now - slot.leased_at,
            slot.tokens,
            late.reason,
        )
        self._intake.table.take_back(slot.position, shun_until=now + SHUN_SECONDS)
        self._intake.counts["leases_stalled"] += 1
        self._rotation.want(session, 0)
        self._revoke(session, name, late.reason)

    def _hand_over(self, slot: Slot) -> bool:
        """Give the lease that a batch waits for to whoever of those with room would be soonest, if anybody would."""
        now, name, session = self._clock(), LeaseName(slot.position, slot.attempt), slot.holder
        if session is None or (self._tried is not None and self._tried[0] == name and now < self._tried[1]):
            return False
        sooner = [
            other
            for other in self._rotation
            if self._is_free(other)
            and self.progress.is_sooner(slot, other, now)
            and self._intake.blame.may_lease(slot, other, now)
        ]
        if not sooner:
            self._tried = name, now + AGAIN_SECONDS
            return False
        other = max(sooner, key=lambda each: self.progress.pace(each).speed or 0.0)
        reason = (
            f"at {self.progress.pace(other).speed or 0.0:.3g} tokens/s {self._describe(other)} is sooner than at "
            f"{self.progress.pace(session).speed or 0.0:.3g}"
        )
        log.info(
            "lease %d of %s is handed over after %.0f s with %d tokens, a batch waits for it: %s",
            slot.position,
            self._describe(session),
            now - slot.leased_at,
            slot.tokens,
            reason,
        )
        slot.num_handed_over += 1
        self._intake.table.take_back(slot.position, shun_until=now + SHUN_SECONDS)
        self._intake.counts["leases_handed_over"] += 1
        self._rotation.call(other)
        self._grant(other)
        self._revoke(session, name, reason)
        return True

    def _name_slow(self, now: float) -> None:
        for session, speed in self.progress.slow().items():
            if session not in self._named:
                self._named.add(session)
                num_held = self._num_held(session)
                log.warning(
                    "%s is slow: %.3g tokens/s for each response, the fleet's median is %.3g; it holds %d leases and "
                    "gets %d more for now",
                    self._describe(session),
                    speed,
                    self.progress.fleet_speed,
                    num_held,
                    self.progress.allowed(session, num_held, now),
                )
        self._named &= self.progress.slow().keys()

    def _tell_of_waiting(self, now: float) -> None:
        if self._intake.awaited is None:
            self._waiting_since = None
            return
        if self._waiting_since is None:
            self._waiting_since, self._told_after = now, TOLD_SECONDS
        if now - self._waiting_since < self._told_after:
            return
        self._told_after *= 2
        found = self.waiting_for(now)
        assert found is not None
        if found["position"] is None:
            log.warning("the next batch has waited for %.0f s, and no lease is out: %s", found["seconds"], _NO_LEASE)
            return
        speed = found["tokens_per_second"]
        log.warning(
            "the next batch has waited for %.0f s: lease %d is first, with %s for %.0f s, %d tokens so far%s",
            found["seconds"],
            found["position"],
            found["holder"],
            found["lease_seconds"],
            found["tokens"],
            "" if speed is None else f", {speed:.3g} tokens/s for each response",
        )


_NO_LEASE = "no actor is connected or has room, or no weights are published for them"
