"""What goes out to actors and what comes back: leases, groups and batches, all in the ledger."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcpo_async.config import GradingSettings, RunConfig
from dcpo_async.errors import ConfigError, LedgerError
from dcpo_async.protocol.conversion import check_group, group_from_message, settings_digest
from dcpo_async.protocol.messages import Ack, Envelope, GroupMessage
from dcpo_async.records import Group, GroupOutcome, Lease, Prompt
from learner.ledger.group_format import encode_group
from learner.ledger.ledger import Ledger, expect_meta
from learner.ledger.reader import QuarantineRow, StoredGroup, VisitRow, quarantined
from learner.scheduling.batches import Awaited, Batches
from learner.scheduling.blame import Blame
from learner.scheduling.leases import LeaseTable, Slot, SlotState
from learner.scheduling.staleness import StalenessGate
from learner.scheduling.versions import PublishedVersion, PublishedVersions
from learner.visits.coming import ComingVisits
from learner.visits.scoring import failed_rewards, score

log = logging.getLogger(__name__)

RETRY_SILENCES = 2
"""After so many times network.silence_seconds a lease may go to a host again where it failed; to others at once."""
DISCARDED_BATCHES = 10
"""Batches' worth of groups that dynamic sampling discards in a row before it warns."""


class Intake:
    """Hands out prompt visits within the staleness bound and takes each group's rewards exactly once.

    Every method runs inside the ledger's open transaction; the caller commits before it sends.

    Attributes:
        counts: what happened since this start, by name.
        versions: that leases may ask for.
        prompts: by id.
        generated_tokens: in all starts, discarded groups included; None in a run of releases that did not count them.
        table: open visits.
        awaited: what the batch that ranks ask for waits for; None while they wait for none.
        hand_over: called with the lease that a batch waits for; gives it to another session, or says that it can't.
        num_batches: filled since this start.
        blame: which failures count.
        quarantined: why prompts are not leased any more, by index.

    Raises:
        ConfigError: the data set is smaller than the admission window.
        LedgerError: the ledger was filled with another number of updates for each batch.
    """

    def __init__(self, config: RunConfig, prompts: Sequence[Prompt], vocab_size: int, ledger: Ledger) -> None:
        config.require_window(len(prompts))
        self.config, self.ledger = config, ledger
        self.prompts = {prompt.id: prompt for prompt in prompts}
        self.counts: Counter[str] = Counter()
        counted_tokens = ledger.meta("generated_tokens") or (None if ledger.num_groups else "0")
        self.generated_tokens = None if counted_tokens is None else int(counted_tokens)
        self._num_discarded_in_a_row = 0
        updates = config.algorithm.updates_per_batch
        expect_meta(
            ledger, "updates_per_batch", str(updates), "its batches begin at other steps; choose another --folder"
        )
        ledger.write_prompts(prompts)
        self._gate = StalenessGate(config.lag.max_lag, config.training.groups_per_step, updates)
        self.versions = PublishedVersions(self._gate, config.lag.publish_interval, ledger.version_steps())
        self._vocab_size, self._own_gradings = vocab_size, config.grading_by_source
        self._made_by = settings_digest(config.sampling, config.grading, self._own_gradings)
        self._in_order = prompts
        self._index_of = {prompt.id: index for index, prompt in enumerate(prompts)}
        rows = ledger.visits("leased", "accepted", is_open=True)
        self.table = LeaseTable(map(self._slot, rows), ledger.next_position())
        self._batches = Batches(self.table, self._gate)
        self._coming = ComingVisits(config, prompts, ledger, self.table)
        self.blame = Blame(self.table, RETRY_SILENCES * config.network.silence_seconds)
        self.quarantined = {self._index_of[row.prompt_id]: row for row in quarantined(ledger)}
        self._next_step = ledger.next_batch_step()
        self.num_batches = 0
        self.awaited: Awaited | None = None
        self.hand_over: Callable[[Slot], bool] = lambda slot: False

    def _slot(self, row: VisitRow) -> Slot:
        """A visit from the ledger; its holder is unknown until a session claims it."""
        return Slot(
            position=row.position,
            prompt_index=self._index_of[row.prompt_id],
            visit=row.visit,
            attempt=row.attempt,
            failures=row.failures,
            state=SlotState(row.state),
            weights_step=row.weights_step,
        )

    def summary(self) -> dict[str, float]:
        """What was counted, and where the open visits stand, as metrics."""
        tokens, states = self.generated_tokens, Counter(slot.state for slot in self.table.open_slots)
        return {
            **{f"total_{name}": float(count) for name, count in self.counts.items()},
            "generated_responses": float(self.ledger.num_groups * self.config.sampling.group_size),
            **({} if tokens is None else {"generated_tokens": float(tokens)}),
            "groups_waiting": float(states[SlotState.ACCEPTED]),
            "groups_leased": float(states[SlotState.LEASED]),
            "prompts_quarantined": float(len(self.quarantined)),
            "total_visits_rested": float(self._coming.num_rested),
        }

    # ---- versions

    def grant_version(self, step: int) -> int:
        """A weights version number that was never used, for the state after `step` optimizer steps."""
        version = self.ledger.grant_version(step)
        self.versions.granted(version, step)
        return version

    def publish(self, weights_version: int) -> bool:
        """A granted version stands; returns whether actors should hear of it."""
        return self.versions.publish(weights_version, self._next_step)

    def offer(self, newest: int | None) -> None:
        """Lease by the newest version in the weight store, where this run granted it, until the trainer is up.

        Not by one that a trainer repeated, on its way to where it had been: actors would go back for it.
        """
        steps = self.versions.steps
        if newest is not None and newest in steps and steps[newest] == max(steps.values()):
            self.versions.offer(newest)

    def resume(self, step: int) -> None:
        """The trainer starts from the state after `step`, and repeats the batches that were committed beyond."""
        self.versions.resume(step, self._next_step)

    # ---- leases

    def grant(self, session: bytes, now: float, weights_version: int = 0, at_most: int | None = None) -> Lease | None:
        """Lease the next visit to a session; None while the staleness gate is shut or the order must wait.

        What was taken back from this session a moment ago, and what failed on its host, goes to others first.

        Args:
            weights_version: that the session has: its tokens will be of this one or newer, so that the group may train
                later than the oldest version would allow.
            at_most: version beyond which the session does not go for now; what needs a newer one goes to others.
        """
        number, slot = self.table.next_to_lease(
            lambda slot: not slot.is_shunning(session, now) and self.blame.may_lease(slot, session, now)
        )
        version = self._version_for(number, weights_version)
        if version is None or (at_most is not None and version.weights_version > at_most):
            return None
        if slot is None:
            slot = self._open_next_visit()
        if slot is None:
            return None
        self.table.lease(slot, session, version.step, now)
        prompt = self._in_order[slot.prompt_index]
        self.ledger.write_lease(slot.position, prompt.id, slot.visit, slot.attempt, version.step)
        self.counts["leases"] += 1
        has_own_reward = self._grading_of(prompt).reward is not None
        self.counts["leases_again"] += slot.attempt > 1
        return Lease(
            position=slot.position,
            attempt=slot.attempt,
            prompt_id=prompt.id,
            visit=slot.visit,
            min_version=version.weights_version,
            prompt_token_ids=np.asarray(prompt.token_ids, dtype=np.int32),
            answer=prompt.answer,
            problem=prompt.problem if has_own_reward else "",
            metadata=prompt.metadata if has_own_reward else "",
            source=prompt.source,
        )

    def _grading_of(self, prompt: Prompt) -> GradingSettings:
        return self._own_gradings.get(prompt.source, self.config.grading)

    @property
    def groups_per_batch(self) -> int:
        """U·B, groups that are assembled together."""
        return self._gate.groups_per_batch

    def _version_for(self, number: int, weights_version: int) -> PublishedVersion | None:
        """The oldest published version that group number `number` may start from; None where it must wait."""
        last_step = self.config.training.max_steps
        if last_step is not None and self._gate.batch_step(number, self._next_step) >= last_step:
            return None
        return self.versions.oldest_for(number, self._next_step, weights_version)

    def prompt_at(self, position: int) -> Prompt:
        """The prompt at a position that was leased, its group discarded or not."""
        visit = self.ledger.visit(position)
        assert visit is not None
        return self.prompts[visit.prompt_id]

    def _open_next_visit(self) -> Slot | None:
        """Open the next visit that may go out; None while the next prompt's last visit is still open."""
        if len(self.quarantined) == len(self.prompts):
            first = next(iter(self.quarantined.values()))
            raise ConfigError(
                f"all {len(self.prompts)} prompts are quarantined, such as {first.prompt_id}: {first.reason}; once the "
                f"cause is mended, `dcpo release {self.config.folder} --all` lets them be leased again"
            )
        return self._coming.open_next(self.quarantined)

    def fail(
        self, session: bytes, position: int, attempt: int, reason: str, *, is_prompts_fault: bool, now: float
    ) -> None:
        """Take a lease back from an actor that could not finish it; quarantine a prompt that failed too often."""
        slot = self.table.get(position)
        if slot is None or slot.holder != session or slot.attempt != attempt:
            return
        self.table.take_back(position)
        name = self._in_order[slot.prompt_index].id
        log.warning("lease %d of prompt %s came back and goes out again first: %s", position, name, reason)
        self.counts["lease_failures"] += is_prompts_fault
        if is_prompts_fault:
            self._count_failures(self.blame.failed(slot, session, now), session, reason)

    def release_session(self, session: bytes, *, fell_at: float | None = None) -> int:
        """Give back the leases of a session that leaves; returns how many.

        Args:
            fell_at: when it ended without a word or by a failure of its engine, if it did.
        """
        released = self.table.release_session(session)
        self.counts["leases_released"] += len(released)
        if fell_at is not None:
            changed = self.blame.fell(released, session, fell_at)
            self._count_failures(changed, session, "whoever held it ended without a word")
            for slot in filter(lambda slot: slot.is_suspect, released):
                name = self._in_order[slot.prompt_index].id
                log.warning("%d sessions ended while they held prompt %s: it goes out apart", slot.falls, name)
        return len(released)

    def _count_failures(self, changed: Sequence[Slot], session: bytes, reason: str) -> None:
        """Write down what has changed, and quarantine what has failed too often."""
        if self.blame.is_doubted(session):
            log.warning("%s fails at everything: it is not believed any more", self.blame.host_of(session))
        for slot in changed:
            self.ledger.write_failure(slot.position, slot.failures)
            if slot.failures >= self.config.actor.max_failures:
                self._quarantine(slot, reason)

    def _quarantine(self, slot: Slot, reason: str) -> None:
        prompt, hosts = self._in_order[slot.prompt_index], ", ".join(slot.failed_on)
        row = QuarantineRow(prompt.id, slot.position, f"failed {slot.failures} times, on {hosts}; at last: {reason}")
        self.table.remove([slot.position])
        self.quarantined[slot.prompt_index] = row
        self.ledger.write_quarantine(slot.position, prompt.id, slot.visit, row.reason)
        log.error("prompt %s is quarantined: it %s", prompt.id, row.reason)

    def release_unlisted(self, now: float) -> int:
        """Give back the leases that no heartbeat lists any more; returns how many."""
        released = self.table.release_unlisted(now, self.config.network.silence_seconds)
        self.counts["leases_released"] += released
        return released

    def start_clock(self, now: float) -> None:
        """Leases of before a restart get one silence period to be claimed by their holders."""
        for slot in self.table.open_slots:
            slot.listed_at = now

    # ---- groups

    def accept(self, session: bytes, envelope: Envelope, now: float = 0.0) -> Ack:
        """Judge a group and, if it is new and sound, count it; one that is not gives its lease back, without blame."""
        message = envelope.message
        assert isinstance(message, GroupMessage)
        outcome, detail = self._judge(session, message), ""
        if outcome == "invalid":
            detail = "the lease was never issued, or another session holds it"
        elif outcome == "accepted" and message.made_by != self._made_by:
            outcome, detail = "superseded", "it was made by other settings of sampling or grading than today's"
            self.table.take_back(message.position, shun_until=now + self.blame.retry_seconds)
            log.warning("group %d of %s does not count: %s", message.position, self.blame.host_of(session), detail)
        elif outcome == "accepted" and (fault := self._fault(message, envelope.arrays)):
            outcome, detail = "invalid", fault
            self.blame.failed(self.table.take_back(message.position), session, now, is_prompts_fault=False)
        elif outcome == "accepted":
            self._count(group_from_message(message, envelope.arrays))
            self.blame.delivered(session)
        self.counts[f"groups_{outcome}"] += 1
        return Ack(position=message.position, attempt=message.attempt, outcome=outcome, detail=detail)

    def refuse_unread(self, session: bytes, position: int, attempt: int, now: float) -> None:
        """A group could not be read, only which lease it is of."""
        if (slot := self.table.get(position)) and slot.holder == session and slot.attempt == attempt:
            self.blame.failed(self.table.take_back(position), session, now, is_prompts_fault=False)
            self.counts["groups_invalid"] += 1

    def _judge(self, session: bytes, message: GroupMessage) -> GroupOutcome:
        """What a group is by its lease alone: new, counted before, of an attempt that was replaced, or not its own."""
        slot = self.table.get(message.position)
        if slot is None:
            visit = self.ledger.visit(message.position)
            if visit is None:
                return "invalid"
            is_counted = visit.state in ("accepted", "too_old", "discarded") and visit.attempt == message.attempt
            return "duplicate" if is_counted else "superseded"
        if message.attempt != slot.attempt:
            return "superseded"
        if slot.state is SlotState.ACCEPTED:
            return "duplicate"
        # A lease without a holder is that of a session which was lost, or which the last start of the learner knew.
        return "accepted" if slot.holder in (None, session) else "invalid"

    def _fault(self, message: GroupMessage, arrays: Mapping[str, NDArray[Any]]) -> str | None:
        fault = check_group(
            message,
            arrays,
            group_size=self.config.sampling.group_size,
            vocab_size=self._vocab_size,
            max_response_tokens=self.config.sampling.max_response_tokens,
            grading=self._grading_of(self.prompt_at(message.position)),
        )
        versions = {version for spans in message.segments for version, _ in spans}
        unknown = sorted(versions - self.versions.steps.keys())
        return fault or (f"weights versions {unknown} were never published by this run" if unknown else None)

    def _count(self, group: Group) -> None:
        slot = self.table.get(group.position)
        assert slot is not None
        prompt_id, algorithm = self._in_order[slot.prompt_index].id, self.config.algorithm
        lengths = [len(response.token_ids) for response in group.responses]
        scored = score(
            group.rewards,
            lengths,
            self.ledger.reward_stats(prompt_id),
            lambda: self.ledger.rewards_until(prompt_id, slot.visit - 1),
            self.config,
        )
        steps = [self.versions.steps[span.weights_version] for item in group.responses for span in item.segments]
        weights_step = min(steps, default=slot.weights_step)
        stored = StoredGroup(group.position, encode_group(group), scored.rewards, scored.advantages)
        self.ledger.accept(stored, prompt_id, scored.stats, weights_step)
        self.table.accept(group.position, weights_step)
        self._coming.counted(slot.prompt_index)
        self.counts["responses"] += len(lengths)
        self.counts.update(failed_rewards(group.reasons))
        self.counts["response_tokens"] += sum(lengths)
        if self.generated_tokens is not None:
            self.generated_tokens += sum(lengths)
            self.ledger.set_meta("generated_tokens", str(self.generated_tokens))
        if algorithm.dynamic_sampling:
            self._discard_if_equal(group)

    def _discard_if_equal(self, group: Group) -> None:
        """Take a group of equal rewards out; other visits take its place, and the prompt returns at its next one."""
        if len(set(group.rewards)) > 1:
            self._num_discarded_in_a_row = 0
            return
        self.ledger.write_untrained([group.position], "discarded")
        self.table.remove([group.position])
        self.counts["groups_discarded"] += 1
        self._num_discarded_in_a_row += 1
        if self._num_discarded_in_a_row % (DISCARDED_BATCHES * self._gate.groups_per_batch) == 0:
            log.warning(
                "dynamic sampling has discarded %d groups in a row: the prompts are all too hard or all too easy",
                self._num_discarded_in_a_row,
            )

    # ---- batches

    def commit_batch(self, step: int) -> bool:
        """Make sure a batch is assigned to `step`; False while its groups are not there yet."""
        if step < self._next_step:
            return True
        if step > self._next_step:
            raise LedgerError(
                f"{self.ledger.folder}: the trainer asks for step {step}, the ledger ends before step "
                f"{self._next_step}: its checkpoint belongs to another ledger; move one of the two away"
            )
        stale, filled = self._batches.look(step)
        if stale:
            self.ledger.write_untrained(stale, "too_old")
            self.table.remove(stale)
            self.counts["groups_too_old"] += len(stale)
            log.warning("%d groups lag too far behind and will not train; their statistics stand", len(stale))
            _, filled = self._batches.look(step)
        while isinstance(filled, Awaited) and filled.is_due and filled.slot and self.hand_over(filled.slot):
            _, filled = self._batches.look(step)
        if isinstance(filled, Awaited):
            self.awaited = filled
            return False
        self.ledger.write_batch(step, filled, self.config.training.groups_per_step)
        self.table.remove(filled)
        self.num_batches, self.awaited = self.num_batches + 1, None
        self._next_step = step + self._gate.updates_per_batch
        self.versions.forget_old(self._next_step)
        return True
