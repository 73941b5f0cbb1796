"""The coordinator's side of evaluations: leases to actors that stay at a version, answers into a table of the ledger.

Nothing of it reaches the intake: no statistics, no batch, no blame, no regrading.
"""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dcpo_async.config import RunConfig
from dcpo_async.errors import LedgerError
from dcpo_async.evaluation.results import Mode
from dcpo_async.prompts import prompts_digest
from dcpo_async.protocol.conversion import check_group, lease_to_message, settings_digest
from dcpo_async.protocol.messages import Ack, Array, GroupMessage, Heartbeat, LeaseFailed, Message
from dcpo_async.records import EVALUATION_POSITIONS, EvaluationTerms, Hold, Lease, LeaseName
from dcpo_async.run_folder import RunFolder
from dcpo_async.weights.locks import let_go
from learner.evaluations.answers import answered, mean_rewards, results_of
from learner.evaluations.measured import Measured, held
from learner.evaluations.problems import HeldOut
from learner.evaluations.reports import EvaluationReports
from learner.evaluations.schedule import Ended, EvaluationSchedule, Task, Terms
from learner.ledger.ledger import Ledger, write_evaluation, write_evaluation_result
from learner.ledger.reader import EvaluationRow, evaluation_results, evaluations
from learner.scheduling.grants import Rotation
from learner.scheduling.sessions import ConnectedActor
from learner.scheduling.versions import PublishedVersions

log = logging.getLogger(__name__)

AT_ONCE = 64
"""Problems for one actor before anything else is done."""
VISIT = 1
"""Of every problem: each version answers under the same noise."""


class EvaluationDesk:
    """Has versions measured by the run's own actors; does nothing where no problems are held out.

    Args:
        config, ledger: of the run.
        held_out: what is asked.
        connected: actors by session, with what their heartbeats have told.
        rotation: sessions with credit that training has not used.
        versions: that leases of training may ask for.
        post: sends a message to a session.
        tell: sends it the newest version again, with what it is asked to stay at.
        now: monotonic seconds.

    Attributes:
        counts: answers by their outcome, since this start.
        over: set while no evaluation is going on.
    """

    def __init__(
        self,
        config: RunConfig,
        ledger: Ledger,
        held_out: HeldOut,
        connected: Mapping[bytes, ConnectedActor],
        rotation: Rotation,
        versions: PublishedVersions,
        post: Callable[[bytes, Message, Mapping[str, Array] | None], None],
        tell: Callable[[bytes], None],
        now: float,
    ) -> None:
        self._config, self._ledger, self._held_out = config, ledger, held_out
        self._connected, self._rotation, self._versions = connected, rotation, versions
        self._post, self._tell = post, tell
        self.counts: Counter[str] = Counter()
        self.over = asyncio.Event()
        self._prompts = [(name, prompt) for name, prompts in held_out.sets.items() for prompt in prompts]
        self._made_by = settings_digest(config.sampling, config.grading, config.grading_by_source)
        shape = {
            **held_out.settings,
            "prompts": prompts_digest([p for _, p in self._prompts]),
            "made_by": self._made_by,
        }
        self._settings = json.dumps(shape, sort_keys=True)
        settings, rows = config.evaluation, evaluations(ledger)
        terms = Terms(
            settings.every_steps,
            settings.max_share,
            settings.hold_seconds,
            settings.samples,
            config.actor.max_failures,
        )
        self._schedule = EvaluationSchedule(terms, len(self._prompts), rows[-1].step if rows else None)
        self._num_evaluations = len(rows)
        self._measured: Measured | None = None
        self._ended = asyncio.Queue[tuple[Ended, Measured]]()
        self._num_unreported = 0
        self._last: dict[str, Any] | None = None
        folder = RunFolder(config.folder)
        self._store = folder.weights
        self._reports = (
            EvaluationReports(folder, held_out.settings, keep_best=settings.keep_best) if self._prompts else None
        )
        if rows and rows[-1].state == "running":
            self._go_on(rows[-1], now)
        self._note_whether_over()

    def use(self, config: RunConfig) -> None:
        """Measure as often as other settings say from now on."""
        self._schedule.every_steps = config.evaluation.every_steps

    async def run(self) -> None:
        """Write down what evaluations have found, until cancelled; a failure of it is told, and training goes on."""
        try:
            while True:
                ended, measured = await self._ended.get()
                try:
                    await self._report(ended, measured)
                except LedgerError as error:
                    # A row may be written in part: nothing may be committed after it.
                    log.error("what evaluation %d has found ends the run: %s", measured.row.evaluation, error)
                    self._ledger.abandon()
                except Exception as error:
                    # The answers are in the ledger, and the next start tries again.
                    text = "what evaluation %d has found cannot be written down, training goes on: %s"
                    log.error(text, measured.row.evaluation, error)
                let_go(measured.descriptor)
                self._num_unreported -= 1
                self._note_whether_over()
        finally:
            if self._measured is not None:
                let_go(self._measured.descriptor)
            if self._reports is not None:
                self._reports.close()

    # ---- what is measured

    def published(self, now: float) -> None:
        """A version is about to be announced: it may be one to measure."""
        newest = self._versions.newest
        if self._num_unreported or not self._schedule.is_due(newest.step):
            return
        number, samples = self._num_evaluations + 1, self._config.evaluation.samples
        row = EvaluationRow(number, newest.weights_version, newest.step, len(self._prompts), self._settings, "running")
        self._measured = held(self._store, row, now)
        if self._measured is None:
            log.warning("version %d is not measured: its folder cannot be kept from being removed", row.weights_version)
            return
        self._num_evaluations = number
        write_evaluation(self._ledger, row)
        self._schedule.begin(number, row.weights_version, row.step, now)
        self._schedule.choose(self._engines(), newest.weights_version)
        self._note_whether_over()
        text = "evaluation %d of version %d, step %d, begins: %d problems, %d responses to each"
        log.info(text, number, row.weights_version, row.step, row.num_problems, samples)

    def _go_on(self, row: EvaluationRow, now: float) -> None:
        """Ask for what an evaluation lacks that an earlier start has begun."""
        found = evaluation_results(self._ledger, row.evaluation)
        if row.settings != self._settings or not self._prompts:
            reason = "what is measured, or how, has changed since"
        elif (measured := held(self._store, row, now, found.values())) is None:
            reason = f"version {row.weights_version} is gone"
        else:
            self._measured = measured
            self._schedule.begin(row.evaluation, row.weights_version, row.step, now, found)
            text = "evaluation %d of version %d, step %d, goes on: %d of %d problems are answered"
            log.info(text, row.evaluation, row.weights_version, row.step, len(found), row.num_problems)
            return
        self._end_incomplete(row, len(found), reason)

    def look(self, now: float) -> None:
        """Once a second: ask others where a holder is gone, and end what is over."""
        self._choose()
        ended = self._schedule.end(now)
        if ended is None:
            return
        assert self._measured is not None
        for session, name in ended.revoked:
            self._revoke(session, name, "the evaluation is over")
        for session in ended.holders:
            self._tell(session)
        self._num_unreported += 1
        self._ended.put_nowait((ended, self._measured))
        self._measured = None

    async def _report(self, ended: Ended, measured: Measured) -> None:
        row = measured.row
        found = evaluation_results(self._ledger, row.evaluation)
        if ended.reason:
            self._end_incomplete(row, len(found), ended.reason)
            return
        mode: Mode = "greedy" if self._config.evaluation.temperature == 0 else "sampled"
        results = results_of(self._prompts, found, mode, self._config.grading, row)
        rewards = mean_rewards(self._prompts, found)
        assert self._reports is not None
        figures = await self._reports.complete(measured.folder, measured.manifest, results, rewards)
        write_evaluation(self._ledger, replace(row, state="complete"))
        self._last = {"step": row.step, "weights_version": row.weights_version, "state": "complete", "figures": figures}
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if "@" in name and "," not in name)
        log.info("evaluation %d of version %d, step %d: %s", row.evaluation, row.weights_version, row.step, shown)

    def _end_incomplete(self, row: EvaluationRow, num_answered: int, reason: str) -> None:
        write_evaluation(self._ledger, replace(row, state="incomplete", reason=reason))
        text = "evaluation %d of version %d, step %d, is incomplete, with %d of %d problems, and has no accuracy: %s"
        log.warning(text, row.evaluation, row.weights_version, row.step, num_answered, row.num_problems, reason)
        if self._reports is not None:
            self._reports.incomplete(row.step, num_answered, row.num_problems)
        self._last = {"step": row.step, "weights_version": row.weights_version, "state": "incomplete", "reason": reason}

    def _note_whether_over(self) -> None:
        if self._schedule.running is None and not self._num_unreported:
            self.over.set()
        else:
            self.over.clear()

    # ---- who stays

    def hold_for(self, session: bytes) -> Hold | None:
        """What a session is asked to stay at."""
        return self._schedule.hold_for(session)

    def is_free(self, session: bytes) -> bool:
        """Whether a session may go on to newer versions."""
        return self.hold_for(session) is None

    def joined(self, session: bytes, held: Sequence[LeaseName], now: float) -> None:
        """A session says hello; what it is asked for goes with its welcome."""
        self._schedule.reclaim(session, _of_evaluations(held), now)
        self._choose(but=session)

    def heard(self, session: bytes, heartbeat: Heartbeat, now: float) -> None:
        """A heartbeat, which is answered by the newest version and what the session is asked for."""
        self._schedule.heard(session, _of_evaluations(heartbeat.held), now)

    def left(self, session: bytes) -> None:
        """A session is gone."""
        self._schedule.left(session)

    def num_held(self, session: bytes) -> int:
        """Problems that a session is to answer."""
        return self._schedule.num_held(session)

    def _engines(self) -> dict[bytes, int]:
        """Versions of those that may be asked to stay, and of those that do so."""
        return {
            name: actor.weights_version
            for name, actor in self._connected.items()
            if actor.role == "actor" and (not self._rotation.is_drained(name) or self.num_held(name))
        }

    def _choose(self, but: bytes | None = None) -> None:
        if self._schedule.running is not None:
            measured = self._schedule.running.weights_version
            trains = any(version.weights_version == measured for version in self._versions.published)
            newest = self._versions.newest.weights_version
            for session in self._schedule.choose(self._engines(), newest, trains=trains):
                if session != but:
                    self._tell(session)

    # ---- problems and answers

    def grant(self, now: float) -> None:
        """Hand out problems: where training has left places, and else up to the share of the fleet's places."""
        running = self._schedule.running
        if running is None or not running.waiting:
            return
        places = sum(actor.response_capacity for actor in self._connected.values() if actor.role == "actor")
        for session in list(running.holders):
            if self._rotation.is_drained(session):
                continue
            has = self._connected[session].weights_version
            for _ in range(AT_ONCE):
                is_idle = self._rotation.credit(session) > 0
                task = self._schedule.next_for(session, has, places, now, is_idle=is_idle)
                if task is None:
                    break
                if is_idle:
                    self._rotation.granted(session)
                message, arrays = lease_to_message(self._lease(task, has))
                self._post(session, message, arrays)

    def _lease(self, task: Task, version: int) -> Lease:
        prompt, settings = self._prompts[task.problem][1], self._config.evaluation
        has_own_reward = self._config.grading.reward is not None
        return Lease(
            position=task.position,
            attempt=task.attempt,
            prompt_id=prompt.id,
            visit=VISIT,
            min_version=version,
            prompt_token_ids=np.asarray(prompt.token_ids, dtype=np.int32),
            answer=prompt.answer,
            problem=prompt.problem if has_own_reward else "",
            metadata=prompt.metadata if has_own_reward else "",
            terms=EvaluationTerms(version, settings.samples, settings.temperature),
        )

    def take(self, session: bytes, group: GroupMessage, arrays: Mapping[str, Array], now: float) -> Ack:
        """Judge an answer and, where it is the first sound one of its problem, count it."""
        outcome, detail = self._schedule.judge(session, group.position), ""
        if outcome == "superseded":
            detail = "the evaluation is over, or another session is at the problem"
        elif outcome == "accepted" and (fault := self._fault(group, arrays)):
            outcome, detail = "invalid", fault
        elif outcome == "accepted" and (mismatch := self._mismatch(group)):
            outcome, detail = "superseded", mismatch
        elif outcome == "accepted":
            assert self._measured is not None
            kept = answered(group, round(self._measured.seconds(now), 3))
            problem = self._schedule.count(group.position)
            write_evaluation_result(self._ledger, self._measured.row.evaluation, problem, kept)
        if outcome == "invalid" or (outcome == "superseded" and detail):
            self._schedule.give_back(session, group.position, is_prompts_fault=False)
        self.counts[f"evaluation_{outcome}"] += 1
        self.look(now)
        return Ack(position=group.position, attempt=group.attempt, outcome=outcome, detail=detail)

    def _fault(self, group: GroupMessage, arrays: Mapping[str, Array]) -> str | None:
        return check_group(
            group,
            arrays,
            group_size=self._config.evaluation.samples,
            vocab_size=self._held_out.vocab_size,
            max_response_tokens=self._config.sampling.max_response_tokens,
            grading=self._config.grading,
        )

    def _mismatch(self, group: GroupMessage) -> str | None:
        """Why a sound answer says nothing of the version that is measured."""
        assert self._measured is not None
        version = self._measured.row.weights_version
        found = {weights_version for segments in group.segments for weights_version, _ in segments}
        if found - {version}:
            return f"version {version} is measured, {sorted(found)} have answered"
        return None if group.made_by == self._made_by else "it was made by other settings than today's"

    def unread(self, session: bytes, position: int) -> None:
        """An answer could not be read, only which lease it is of."""
        self._schedule.give_back(session, position, is_prompts_fault=False)

    def failed(self, session: bytes, failed: LeaseFailed) -> None:
        """An actor gives a problem back."""
        log.warning("a problem of the evaluation came back: %s", failed.reason)
        self._schedule.give_back(session, failed.position, is_prompts_fault=failed.is_prompts_fault)
        self._tell(session)

    def _revoke(self, session: bytes, name: LeaseName, reason: str) -> None:
        ack = Ack(position=name.position, attempt=name.attempt, outcome="superseded", detail=reason)
        self._post(session, ack, None)

    # ---- reports

    def status(self) -> dict[str, Any] | None:
        """What `status.json` says; None where nothing is measured."""
        if self._reports is None:
            return None
        running = self._schedule.running
        shown = running and {
            "evaluation": running.evaluation,
            "step": running.step,
            "weights_version": running.weights_version,
            "answered": len(running.done),
            "problems": len(self._prompts),
            "leased": len(running.leased),
            "actors": len(running.holders),
        }
        return {"running": shown or None, "last": self._last}


def is_of_evaluation(position: int) -> bool:
    """Whether a lease is of an evaluation, not of training."""
    return position >= EVALUATION_POSITIONS


def of_training(heartbeat: Heartbeat, samples: int) -> Heartbeat:
    """A heartbeat as far as it is about training: a lease of an evaluation has all its responses in flight."""
    kept = [place for place, name in enumerate(heartbeat.held) if not is_of_evaluation(name.position)]
    num_others = len(heartbeat.held) - len(kept)
    if not num_others:
        return heartbeat
    return heartbeat.model_copy(
        update={
            "held": tuple(heartbeat.held[place] for place in kept),
            "tokens": tuple(heartbeat.tokens[place] for place in kept),
            "responses_in_flight": max(0, heartbeat.responses_in_flight - num_others * samples),
        }
    )


def _of_evaluations(held: Sequence[LeaseName]) -> list[LeaseName]:
    return [name for name in held if is_of_evaluation(name.position)]
