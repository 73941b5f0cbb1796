"""The ledger under everything that can go wrong, in any order, against a recount that shares no code with it."""

import shutil
import tempfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dcpo_async.algorithm import RewardStats, smooth_advantages
from dcpo_async.records import Lease, LeaseName
from learner.coordinator.intake import Intake
from learner.coordinator.shards import step_groups
from learner.scheduling.leases import SlotState
from tests.learner.small_run import answer, make_config, make_intake

SESSIONS = (b"a", b"b", b"c")
REWARDS = st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0]))


@dataclass
class Sent:
    """A group that was counted: what the machine expects the ledger to say for ever."""

    lease: Lease
    rewards: tuple[float, ...]
    weights_step: int


class Ledger(RuleBasedStateMachine):
    """Actors that answer, fail, vanish and come back; a trainer that goes back to its checkpoint; kills."""

    @initialize(
        groups_per_step=st.integers(1, 2),
        updates=st.integers(1, 2),
        spare_lag=st.integers(0, 3),
        rare=st.booleans(),
        spare_prompts=st.integers(0, 3),
        is_calm=st.booleans(),
    )
    def begin(
        self, groups_per_step: int, updates: int, spare_lag: int, rare: bool, spare_prompts: int, is_calm: bool
    ) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.interval = updates * (2 if rare else 1)
        self.max_lag = self.interval - updates + spare_lag
        self.config = make_config(
            self.root / "0",
            groups_per_step=groups_per_step,
            updates=updates,
            max_lag=self.max_lag,
            lag={"publish_interval": self.interval},
            actor={"max_failures": 2},
        )
        self.groups_per_step, self.updates = groups_per_step, updates
        self.num_prompts = self.config.admission_window + spare_prompts
        self.intake = self.open_ledger()
        self.now = 0.0
        self.held: list[tuple[bytes, Lease]] = []
        self.newest_attempt: dict[int, int] = {}
        self.sent: dict[int, Sent] = {}
        self.order: dict[str, list[int]] = {}
        self.batches: dict[int, list[int]] = {}
        self.steps_of: dict[int, int] = {}
        self.announced: list[int] = []
        self.step = self.checkpoint = 0
        self.is_calm = is_calm
        self.publish()

    def open_ledger(self) -> Intake:
        return make_intake(self.config, self.num_prompts, segment_bytes=600)

    def teardown(self) -> None:
        if not hasattr(self, "intake"):
            return
        self.still_makes_progress()
        self.intake.ledger.abandon()
        shutil.rmtree(self.root)

    # ---- the trainer

    def publish(self) -> None:
        version = self.intake.grant_version(self.step)
        assert version not in self.steps_of
        self.steps_of[version] = self.step
        if self.intake.publish(version):
            self.announced.append(version)
        self.intake.ledger.commit()

    @rule()
    def train(self) -> None:
        """One batch, if it stands: read back as it was, trained, published."""
        if not self.intake.commit_batch(self.step):
            return
        self.intake.ledger.commit()
        for step in range(self.step, self.step + self.updates):
            self.check_step(step)
            self.step += 1
            if self.step % self.interval == 0:
                self.publish()

    @rule()
    def save_checkpoint(self) -> None:
        if self.step % self.updates == 0:
            self.checkpoint = self.step
            self.intake.ledger.release_segments(self.checkpoint)

    @precondition(lambda self: self.checkpoint < self.step and not self.is_calm)
    @rule()
    def trainer_dies(self) -> None:
        self.resume_trainer()

    def resume_trainer(self) -> None:
        self.step = self.checkpoint
        self.intake.resume(self.step)
        self.publish()

    def check_step(self, step: int) -> None:
        groups = step_groups(self.intake.ledger, step, self.intake.prompts, with_old=False)
        positions = [entry.group.position for entry in groups]
        assert self.batches.setdefault(step, positions) == positions
        assert positions == sorted(positions)
        assert len(positions) == self.groups_per_step
        for entry in groups:
            sent = self.sent[entry.group.position]
            assert list(entry.advantages) == self.expected_advantages(sent.lease)
            assert entry.group.rewards == sent.rewards
            assert entry.visit == sent.lease.visit
            assert entry.prompt_token_ids.tolist() == sent.lease.prompt_token_ids.tolist()
            assert step - step % self.updates - sent.weights_step <= self.max_lag

    def expected_advantages(self, lease: Lease) -> list[float]:
        """From the rewards of the prompt's earlier visits, one after another."""
        stats = RewardStats()
        earlier: list[int] = []
        for position in self.order[lease.prompt_id]:
            if position == lease.position:
                break
            earlier.append(position)
            stats = stats.with_rewards(self.sent[position].rewards)
        assert len(earlier) == lease.visit - 1
        advantages, _ = smooth_advantages(self.sent[lease.position].rewards, stats)
        return advantages

    # ---- actors

    @rule(session=st.sampled_from(SESSIONS), at_most=st.integers(1, 6))
    def want(self, session: bytes, at_most: int) -> None:
        while at_most and (lease := self.intake.grant(session, self.now)) is not None:
            self.check_lease(lease)
            self.held.append((session, lease))
            self.newest_attempt[lease.position] = lease.attempt
            at_most -= 1
        self.intake.ledger.commit()

    def check_lease(self, lease: Lease) -> None:
        """Its versions are young enough for the batch that it trains in, counted from the batches that stand."""
        done = {position for positions in self.batches.values() for position in positions}
        rows = self.intake.ledger.visits("leased", "accepted", is_open=True)
        ahead = [row.position for row in rows if row.position < lease.position and row.position not in done]
        next_step = self.intake.ledger.next_batch_step()
        batch_step = next_step + len(ahead) // (self.groups_per_step * self.updates) * self.updates
        usable = [version for version in self.announced if version >= lease.min_version]
        assert usable
        assert batch_step - self.steps_of[lease.min_version] <= self.max_lag
        if self.is_calm:
            assert all(batch_step - self.steps_of[version] <= self.max_lag for version in usable)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), rewards=REWARDS, is_committed=st.booleans())
    def finish(self, data: st.DataObject, rewards: tuple[float, ...], is_committed: bool) -> None:
        session, lease = data.draw(st.sampled_from(self.held))
        usable = [version for version in self.announced if version >= lease.min_version]
        first = data.draw(st.sampled_from(usable))
        versions = sorted({first, data.draw(st.sampled_from([version for version in usable if version >= first]))})
        expected = self.expected_outcome(lease)
        assert self.intake.accept(session, answer(lease, versions, rewards)).outcome == expected
        if not is_committed and not self.is_calm:
            # The learner is killed before the commit: nobody has heard of the group.
            self.learner_dies()
            return
        self.intake.ledger.commit()
        if expected == "accepted":
            self.note(lease, rewards, min(self.steps_of[version] for version in versions))

    @rule(session=st.sampled_from(SESSIONS), num_stragglers=st.integers(0, 5))
    def a_round(self, session: bytes, num_stragglers: int) -> None:
        """A session takes all it can get, everybody works, the trainer trains."""
        self.want(session, 100)
        self.answer_all_but(num_stragglers)
        self.train()

    def answer_all_but(self, num_stragglers: int) -> None:
        """Actors finish all but the first of what they hold, under the oldest weights that they may use."""
        open_leases = [(who, lease) for who, lease in self.held if self.expected_outcome(lease) == "accepted"]
        for session, lease in open_leases[num_stragglers:]:
            assert self.intake.accept(session, answer(lease, lease.min_version)).outcome == "accepted"
            self.note(lease, (1.0, 0.0), self.steps_of[lease.min_version])
        self.intake.ledger.commit()

    def note(self, lease: Lease, rewards: tuple[float, ...], weights_step: int) -> None:
        self.sent[lease.position] = Sent(lease, rewards, weights_step)
        self.order.setdefault(lease.prompt_id, []).append(lease.position)

    def expected_outcome(self, lease: Lease) -> str:
        if lease.position in self.sent:
            return "duplicate" if lease.attempt == self.sent[lease.position].lease.attempt else "superseded"
        visit = self.intake.ledger.visit(lease.position)
        assert visit is not None
        is_newest = lease.attempt == self.newest_attempt[lease.position]
        return "accepted" if is_newest and visit.state != "quarantined" else "superseded"

    @precondition(lambda self: self.held and not self.is_calm)
    @rule(data=st.data(), is_prompts_fault=st.booleans())
    def fail(self, data: st.DataObject, is_prompts_fault: bool) -> None:
        session, lease = data.draw(st.sampled_from(self.held))
        if len(self.intake.quarantined) < self.num_prompts - 1:
            self.intake.fail(
                session, lease.position, lease.attempt, "a reason", is_prompts_fault=is_prompts_fault, now=self.now
            )
        self.intake.ledger.commit()

    @precondition(lambda self: not self.is_calm)
    @rule(session=st.sampled_from(SESSIONS))
    def session_is_lost(self, session: bytes) -> None:
        if len(self.intake.quarantined) < self.num_prompts - 1:
            self.intake.release_session(session, fell_at=self.now)
        self.intake.ledger.commit()

    @rule(session=st.sampled_from(SESSIONS), data=st.data())
    def session_joins_again(self, session: bytes, data: st.DataObject) -> None:
        names = [
            LeaseName(position=lease.position, attempt=lease.attempt) for who, lease in self.held if who == session
        ]
        self.intake.table.reclaim(session, [name for name in names if data.draw(st.booleans())], self.now)

    @precondition(lambda self: not self.is_calm)
    @rule(session=st.sampled_from(SESSIONS), seconds=st.sampled_from([5.0, 16.0]))
    def time_passes(self, session: bytes, seconds: float) -> None:
        names = [
            LeaseName(position=lease.position, attempt=lease.attempt) for who, lease in self.held if who == session
        ]
        self.now += seconds
        self.intake.table.heartbeat(session, names, [0] * len(names), self.now)
        self.intake.release_unlisted(self.now)

    # ---- kills

    @precondition(lambda self: not self.is_calm)
    @rule()
    def learner_dies(self) -> None:
        """kill -9 of coordinator and trainer: the folder as it is, with half a record behind the last segment."""
        folder = self.root / str(int(self.config.folder.name) + 1)
        shutil.copytree(self.config.folder, folder)
        self.intake.ledger.abandon()
        newest = max((folder / "ledger" / "segments").iterdir())
        with newest.open("ab") as file:
            file.write(b"half a record")
        self.config = self.config.model_copy(update={"folder": folder})
        self.intake = self.open_ledger()
        self.intake.start_clock(self.now)
        self.lease_before_the_trainer_is_up()
        self.resume_trainer()

    def lease_before_the_trainer_is_up(self) -> None:
        newest = max(self.steps_of)
        self.intake.offer(newest)
        is_offered = self.intake.versions.newest.weights_version == newest
        assert is_offered == (self.steps_of[newest] == max(self.steps_of.values()))
        if is_offered and newest not in self.announced:
            self.announced.append(newest)
        self.want(b"b", 2)

    # ---- what always holds

    def quarantined_ids(self) -> set[str]:
        return {
            prompt.id for index, prompt in enumerate(self.intake.prompts.values()) if index in self.intake.quarantined
        }

    @invariant()
    def every_visit_is_counted_exactly_once(self) -> None:
        if not hasattr(self, "intake"):
            return
        assert self.intake.ledger.num_groups == len(self.sent)
        visits = [(sent.lease.prompt_id, sent.lease.visit) for sent in self.sent.values()]
        assert len(set(visits)) == len(visits)
        for prompt_id, positions in self.order.items():
            rewards = [reward for position in positions for reward in self.sent[position].rewards]
            stats = self.intake.ledger.reward_stats(prompt_id)
            assert (stats.visits, stats.count) == (len(positions), len(rewards))
            assert stats.sum_nano == 10**9 * sum(rewards)
            assert Fraction(stats.sum_sq_nano, 10**18) == sum(Fraction(reward) ** 2 for reward in rewards)
            assert [self.sent[position].lease.visit for position in positions] == list(range(1, len(positions) + 1))

    @invariant()
    def no_prompt_is_open_twice(self) -> None:
        if not hasattr(self, "intake"):
            return
        unfinished = [slot for slot in self.intake.table.open_slots if slot.state is not SlotState.ACCEPTED]
        prompts = [slot.prompt_index for slot in unfinished]
        assert len(set(prompts)) == len(prompts)

    @invariant()
    def every_group_is_in_one_step_or_none(self) -> None:
        trained = [position for positions in getattr(self, "batches", {}).values() for position in positions]
        assert len(set(trained)) == len(trained)

    @invariant()
    def nothing_is_thrown_away_while_nobody_is_lost(self) -> None:
        if hasattr(self, "intake") and self.is_calm:
            assert self.intake.counts["groups_too_old"] == 0

    def still_makes_progress(self) -> None:
        """From any state: when actors answer all they can get, the trainer goes on, and never waits for good."""
        self.held.clear()
        for session in SESSIONS:
            self.intake.release_session(session)
        self.now += 100.0
        self.intake.release_unlisted(self.now)
        goal = self.intake.ledger.next_batch_step() + 2 * self.interval
        for _ in range(200):
            if self.step >= goal:
                return
            self.a_round(b"a", 0)
            self.held.clear()
        raise AssertionError(f"the trainer is stuck before step {self.step}")


Ledger.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
test_the_ledger_counts_every_visit_once_and_keeps_the_lag_whatever_happens = Ledger.TestCase
