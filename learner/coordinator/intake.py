"""What goes out to actors and what comes back: leases, groups, statistics and batches, all in the ledger."""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dcpo_async.algorithm import ADVANTAGES, fading_advantages, overlong_penalty
from dcpo_async.config import RunConfig
from dcpo_async.errors import ConfigError, LedgerError
from dcpo_async.prompts.order import PromptOrder
from dcpo_async.protocol.codec import encode
from dcpo_async.protocol.conversion import check_group
from dcpo_async.protocol.messages import Ack, Envelope, GroupMessage, LeaseName
from dcpo_async.records import Lease, Prompt
from learner.coordinator.shards import StepGroup, group_of
from learner.ledger.ledger import Ledger
from learner.ledger.reader import StoredGroup, VisitRow
from learner.scheduling.batches import next_batch, too_old
from learner.scheduling.leases import LeaseTable, Slot, SlotState
from learner.scheduling.staleness import StalenessGate

log = logging.getLogger(__name__)

DISCARDED_BATCHES = 10
"""Batches' worth of groups that dynamic sampling discards in a row before it warns."""

Outcome = Literal["accepted", "duplicate", "superseded", "invalid"]


@dataclass(frozen=True, slots=True)
class PublishedVersion:
    """A weights version that stands in the weight store."""

    weights_version: int
    step: int


class Intake:
    """Hands out prompt visits within the staleness bound and takes each group's rewards exactly once.

    Every method runs inside the ledger's open transaction; the caller commits before anything is sent.

    Attributes:
        counts: what happened since this start, by name.
        published: versions that leases may ask for, oldest first; their steps go up.
        generated_tokens: counted in all starts of the run, discarded groups included; None where an earlier release,
            which did not count them, began it.
        version_steps: optimizer step of every version that was ever granted.
        table: open visits.
        quarantined: indices of prompts that are not leased any more.

    Raises:
        ConfigError: the data set is smaller than the admission window.
        LedgerError: the ledger was filled with another number of updates for each batch.
    """

    def __init__(self, config: RunConfig, prompts: Sequence[Prompt], vocab_size: int, ledger: Ledger) -> None:
        if len(prompts) < config.admission_window:
            raise ConfigError(
                f"data.source has {len(prompts)} usable prompts, fewer than the admission window of "
                f"{config.admission_window} = (⌊max_lag / U⌋ + 1)·U·groups_per_step with U = "
                f"{config.algorithm.updates_per_batch}: a prompt would be open twice; lower lag.max_lag, "
                "algorithm.updates_per_batch or training.groups_per_step, or add problems"
            )
        self.config, self.prompts, self.ledger = config, prompts, ledger
        self.counts: Counter[str] = Counter()
        counted_tokens = ledger.meta("generated_tokens") or (None if ledger.num_groups() else "0")
        self.generated_tokens = None if counted_tokens is None else int(counted_tokens)
        self._num_discarded_in_a_row = 0
        self.published: list[PublishedVersion] = []
        self.version_steps = ledger.version_steps()
        updates = config.algorithm.updates_per_batch
        ledger.expect_meta(
            "updates_per_batch", str(updates), "its batches begin at other steps; choose another --folder"
        )
        ledger.write_prompts(prompts)
        self.gate = StalenessGate(config.lag.max_lag, config.training.groups_per_step, updates)
        self._vocab_size = vocab_size
        self._index_of = {prompt.id: index for index, prompt in enumerate(prompts)}
        # The window may change from start to start, the order of the prompts must not.
        min_gap = int(ledger.meta("min_gap") or config.admission_window)
        ledger.set_meta("min_gap", str(min_gap))
        self._order = PromptOrder(len(prompts), config.seed, min_gap)
        rows = ledger.visits("s.step IS NULL AND state IN ('leased', 'accepted')")
        self.table = LeaseTable(map(self._slot, rows), ledger.next_position())
        self.quarantined = {self._index_of[row.prompt_id] for row in ledger.visits("state = 'quarantined'")}
        self._next_step = ledger.next_batch_step()

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

    @property
    def generated_responses(self) -> int:
        """Counted in all starts of the run, discarded groups included."""
        return self.ledger.num_groups() * self.config.sampling.group_size

    # ---- leases

    def grant_version(self, step: int) -> int:
        """A weights version number that was never used, for the state after `step` optimizer steps."""
        version = self.ledger.grant_version(step)
        self.version_steps[version] = step
        return version

    def publish(self, weights_version: int, step: int) -> bool:
        """A version stands; returns whether actors should hear of it, and leases may ask for it.

        While the trainer repeats committed batches, it publishes weights that lag behind those which actors have.
        Adopted, they would only make groups too old; the version that stands when it needs new groups is offered.
        """
        self.ledger.write_published(weights_version)
        interval = self.config.lag.publish_interval
        if (step // interval + 1) * interval <= self._next_step:
            return False
        self.published = [version for version in self.published if version.step < step]
        self.published.append(PublishedVersion(weights_version, step))
        self._forget_old_versions()
        return True

    def resume(self, step: int) -> None:
        """The trainer starts from the state after `step`: versions that it had published beyond are abandoned.

        What actors generated with them stays valid, but the weight store does not keep them.
        """
        self.published = [version for version in self.published if version.step <= step]

    def _forget_old_versions(self) -> None:
        """Drop all that no lease can ask for any more, but the newest."""
        oldest_step = self.gate.oldest_step(0, self._next_step)
        newest = self.published[-1:]
        self.published = [version for version in self.published if version.step >= oldest_step] or newest

    def grant(self, session: bytes, now: float) -> Lease | None:
        """Lease the next visit to a session; None while the staleness gate is shut or the order must wait."""
        number, slot = self.table.next_to_lease()
        version = self._version_for(number)
        if version is None:
            return None
        if slot is None:
            slot = self._open_next_visit()
        if slot is None:
            return None
        self.table.lease(slot, session, version.step, now)
        prompt = self.prompts[slot.prompt_index]
        self.ledger.write_lease(slot.position, prompt.id, slot.visit, slot.attempt, version.step)
        self.counts["leases"] += 1
        self.counts["leases_again"] += slot.attempt > 1
        return Lease(
            position=slot.position,
            attempt=slot.attempt,
            prompt_id=prompt.id,
            visit=slot.visit,
            min_version=version.weights_version,
            prompt_token_ids=np.asarray(prompt.token_ids, dtype=np.int32),
            answer=prompt.answer,
        )

    def _version_for(self, number: int) -> PublishedVersion | None:
        """The oldest published version that group number `number` may start from; all after it may serve too."""
        last_step = self.config.training.max_steps
        if last_step is not None and self.gate.batch_step(number, self._next_step) >= last_step:
            return None
        oldest_step = self.gate.oldest_step(number, self._next_step)
        return next((version for version in self.published if version.step >= oldest_step), None)

    def answer_at(self, position: int) -> str:
        """Reference answer of the prompt at a position that was leased, its group discarded or not."""
        visit = self.ledger.visit(position)
        assert visit is not None
        return self.prompts[self._index_of[visit.prompt_id]].answer

    def _open_next_visit(self) -> Slot | None:
        """Open the next visit that may go out; None while the next prompt's last visit is still open."""
        if len(self.quarantined) == len(self.prompts):
            raise ConfigError(
                f"all {len(self.prompts)} prompts failed {self.config.actor.max_failures} times and are quarantined; "
                "the learner's log has the reasons that actors gave"
            )
        while True:
            position = self.table.next_position
            prompt_index, visit = self._order.index(position), self._order.epoch(position) + 1
            if prompt_index in self.quarantined:
                self.ledger.write_quarantine(position, self.prompts[prompt_index].id, visit)
                self.table.skip_position()
            elif self.table.is_prompt_open(prompt_index):
                return None
            else:
                return self.table.open_new(prompt_index, visit)

    def fail(self, session: bytes, position: int, attempt: int, reason: str, is_prompts_fault: bool) -> None:
        """Take a lease back from an actor that could not finish it; quarantine the prompt after max_failures."""
        slot = self.table.fail(session, position, attempt, is_prompts_fault)
        if slot is None:
            return
        self.counts["lease_failures"] += is_prompts_fault
        self.ledger.write_failure(position, slot.failures)
        prompt = self.prompts[slot.prompt_index]
        if slot.failures < self.config.actor.max_failures:
            log.warning("lease %d of prompt %s came back and goes out again first: %s", position, prompt.id, reason)
            return
        self.table.remove([position])
        self.quarantined.add(slot.prompt_index)
        self.ledger.write_quarantine(position, prompt.id, slot.visit)
        log.error("prompt %s failed %d times and is quarantined, at last: %s", prompt.id, slot.failures, reason)

    def release_session(self, session: bytes) -> int:
        """Give back the leases of a lost or leaving session; returns how many."""
        num_released = self.table.release_session(session)
        self.counts["leases_released"] += num_released
        return num_released

    def release_unlisted(self, now: float) -> int:
        """Give back the leases that no heartbeat lists any more; returns how many."""
        num_released = self.table.release_unlisted(now, self.config.network.silence_seconds)
        self.counts["leases_released"] += num_released
        return num_released

    def start_clock(self, now: float) -> None:
        """Leases of before a restart get one silence period to be claimed by their holders."""
        for slot in self.table.open_slots:
            slot.listed_at = now

    def reclaim(self, session: bytes, held: Sequence[LeaseName], now: float) -> None:
        """A session joins again and says what it holds."""
        self.table.reclaim(session, held, now)

    # ---- groups

    def accept(self, session: bytes, envelope: Envelope) -> Ack:
        """Judge a group and, if it is new and sound, count it: one transaction for group, statistics, advantages."""
        message = envelope.message
        assert isinstance(message, GroupMessage)
        outcome, detail = self._judge(session, message), ""
        if outcome == "accepted" and (fault := self._fault(message, envelope.arrays)):
            outcome, detail = "invalid", fault
        elif outcome == "invalid":
            detail = "the lease was never issued, or another session holds it"
        if outcome == "accepted":
            self._count(envelope, message)
        self.counts[f"groups_{outcome}"] += 1
        return Ack(position=message.position, attempt=message.attempt, outcome=outcome, detail=detail)

    def _judge(self, session: bytes, message: GroupMessage) -> Outcome:
        """What a group is by its lease alone: new, counted before, of an attempt that was replaced, or not its own."""
        slot = self.table.get(message.position)
        if slot is None:
            return self._judge_closed(message)
        if message.attempt != slot.attempt:
            return "superseded"
        if slot.state is SlotState.ACCEPTED:
            return "duplicate"
        # A lease without a holder is that of a session which was lost, or which the last start of the learner knew.
        return "accepted" if slot.holder in (None, session) else "invalid"

    def _judge_closed(self, message: GroupMessage) -> Outcome:
        visit = self.ledger.visit(message.position)
        if visit is None:
            return "invalid"
        is_counted = visit.state in ("accepted", "too_old", "discarded") and visit.attempt == message.attempt
        return "duplicate" if is_counted else "superseded"

    def _fault(self, message: GroupMessage, arrays: Mapping[str, NDArray[Any]]) -> str | None:
        penalty = self.config.grading.format_penalty
        fault = check_group(
            message,
            arrays,
            group_size=self.config.sampling.group_size,
            vocab_size=self._vocab_size,
            max_response_tokens=self.config.sampling.max_response_tokens,
            allowed_rewards=(1.0, 0.0, -penalty),
        )
        versions = {version for spans in message.segments for version, _ in spans}
        unknown = sorted(versions - self.version_steps.keys())
        return fault or (f"weights versions {unknown} were never published by this run" if unknown else None)

    def _count(self, envelope: Envelope, message: GroupMessage) -> None:
        slot = self.table.get(message.position)
        assert slot is not None
        prompt_id = self.prompts[slot.prompt_index].id
        stats = self.ledger.reward_stats(prompt_id)
        algorithm = self.config.algorithm
        rewards = self._shaped_rewards(message)
        if algorithm.half_life_visits is None:
            advantages, stats = ADVANTAGES[algorithm.advantage](rewards, stats, algorithm.ddof)
        else:
            groups = [*self.ledger.rewards_until(prompt_id, slot.visit - 1), rewards]
            advantages = fading_advantages(groups, algorithm.half_life_visits, algorithm.ddof)
            stats = stats.with_rewards(rewards)
        steps = [self.version_steps[version] for spans in message.segments for version, _ in spans]
        weights_step = min(steps, default=slot.weights_step)
        frames = tuple(bytes(frame) for frame in encode(envelope))
        group = StoredGroup(message.position, frames, tuple(rewards), tuple(advantages))
        self.ledger.accept(group, prompt_id, stats, weights_step)
        self.table.accept(message.position, weights_step)
        self.counts["responses"] += len(message.rewards)
        self.counts["response_tokens"] += sum(message.lengths)
        if self.generated_tokens is not None:
            self.generated_tokens += sum(message.lengths)
            self.ledger.set_meta("generated_tokens", str(self.generated_tokens))
        if algorithm.dynamic_sampling:
            self._discard_if_equal(message)

    def _discard_if_equal(self, message: GroupMessage) -> None:
        """Take a group of equal rewards out; other visits take its place, and the prompt returns at its next one."""
        if len(set(message.rewards)) > 1:
            self._num_discarded_in_a_row = 0
            return
        self.ledger.write_untrained([message.position], "discarded")
        self.table.remove([message.position])
        self.counts["groups_discarded"] += 1
        self._num_discarded_in_a_row += 1
        if self._num_discarded_in_a_row % (DISCARDED_BATCHES * self.gate.groups_per_batch) == 0:
            log.warning(
                "dynamic sampling has discarded %d groups in a row: the prompts are all too hard or all too easy",
                self._num_discarded_in_a_row,
            )

    def _shaped_rewards(self, message: GroupMessage) -> list[float]:
        """Rewards less what overlong responses cost."""
        buffer, limit = self.config.algorithm.overlong_buffer_tokens, self.config.sampling.max_response_tokens
        return [
            reward - overlong_penalty(length, limit, buffer)
            for reward, length in zip(message.rewards, message.lengths, strict=True)
        ]

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
        stale = too_old(self.table.open_slots, step, self.gate)
        if stale:
            self.ledger.write_untrained(stale, "too_old")
            self.table.remove(stale)
            self.counts["groups_too_old"] += len(stale)
            log.warning("%d groups lag too far behind and will not train; their statistics stand", len(stale))
        positions = next_batch(self.table.open_slots, step, self.gate)
        if positions is None:
            return False
        self.ledger.write_batch(step, positions, self.config.training.groups_per_step)
        self.table.remove(positions)
        self._next_step = step + self.gate.updates_per_batch
        self._forget_old_versions()
        return True

    def step_groups(self, step: int) -> list[StepGroup]:
        """The groups of a committed step as the ledger has them, in lease order."""
        return [self._step_group(position) for position in self.ledger.step_positions(step)]

    def _step_group(self, position: int) -> StepGroup:
        stored, visit = self.ledger.read_group(position), self.ledger.visit(position)
        assert visit is not None
        group = group_of(stored)
        prompt = self.prompts[self._index_of[visit.prompt_id]]
        return StepGroup(
            group=group,
            prompt_token_ids=np.asarray(prompt.token_ids, dtype=np.int32),
            advantages=stored.advantages,
            visit=visit.visit,
            old_logprobs=tuple(self._old_logprobs(position, i) for i in range(len(group.responses))),
        )

    def _old_logprobs(self, position: int, response: int) -> NDArray[np.float32] | None:
        if self.config.algorithm.old == "behavior":
            return None
        data = self.ledger.read_old_logprobs(position, response)
        return None if data is None else np.frombuffer(data, dtype="<f4")

    def release_arrays(self, retained_steps: Sequence[int]) -> None:
        """Delete arrays that every retained checkpoint already contains."""
        if retained_steps:
            released = self.ledger.release_segments(min(retained_steps))
            if released:
                log.info("segments %s are in every retained checkpoint and were deleted", json.dumps(released))
