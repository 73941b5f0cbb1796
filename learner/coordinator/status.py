"""What people and tools hear of a run: a line and a record for each step, and status.json every second."""

import logging
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dcpo_async import __version__
from dcpo_async.config import RunConfig
from dcpo_async.durable import write_json
from dcpo_async.metrics.advice import Balance, advice
from dcpo_async.metrics.health import this_process
from dcpo_async.metrics.sink import Sink
from dcpo_async.run_folder import RunFolder, lacking_room
from dcpo_async.weights.canary import canary_bound
from learner.coordinator.actor_desk import ActorDesk, name_of
from learner.coordinator.intake import Intake
from learner.coordinator.trainer_desk import TrainerDesk
from learner.ledger.ledger import Ledger
from learner.scheduling.sessions import ConnectedActor

log = logging.getLogger(__name__)

ADVICE_STEPS, ADVICE_SAMPLES = 20, 600
"""What advice looks at: so many of the newest steps, and of the seconds in which the status was written."""
LOGGED_METRICS = ("reward", "rur", "tcr", "lag_mean", "actors")
SHOWN_QUARANTINED = 100
"""Prompts whose quarantine is told with its reason; `dcpo release RUN` lists all."""
WARN_SHARE_OF_BOUND = 0.5
"""Of the difference at which an engine refuses a version; rounding alone stays well below (decision 22)."""


class Status:
    """Reports from what intake and desks know.

    Args:
        config: of the run.
        run_id: as peers know it.
        intake: what has been counted, and where open visits stand.
        ledger: its numbers of groups and starts.
        actors, ranks: who is connected, and how far the training is.
        sinks: take the metrics of each step.
        clock: monotonic seconds, as the desks have it.
        num_gpus: of the trainer, 0 on a CPU.

    Attributes:
        marks: metrics of a step that say what had been set while the run went on.
        settings_set: what was set, for people and tools.
    """

    def __init__(
        self,
        config: RunConfig,
        run_id: str,
        intake: Intake,
        ledger: Ledger,
        actors: ActorDesk,
        ranks: TrainerDesk,
        sinks: Sequence[Sink],
        clock: Callable[[], float],
        num_gpus: int,
    ) -> None:
        self._config, self._run_id, self._intake, self._ledger = config, run_id, intake, ledger
        self._actors, self._ranks, self._sinks, self._clock = actors, ranks, sinks, clock
        self.marks: Callable[[int], Mapping[str, float]] = lambda step: {}
        self.settings_set: Callable[[], Sequence[Mapping[str, Any]]] = list
        self._last_report: dict[str, float] = {}
        self._num_gpus = num_gpus
        self._steps: deque[tuple[float, float]] = deque(maxlen=ADVICE_STEPS)
        self._ends: deque[float] = deque(maxlen=ADVICE_STEPS)
        self._process, self._started_at, self._is_over = this_process(), time.time(), False
        self._is_stale = False
        self._last_step_at: float | None = None
        self._answered: tuple[tuple[int, int] | None, float] = (None, 0.0)
        self._uses: deque[float] = deque(maxlen=ADVICE_SAMPLES)
        self._bound_nats = canary_bound(config.weights.canary_bound, config.model.dtype)
        self._warn_above_nats = WARN_SHARE_OF_BOUND * self._bound_nats

    def step_done(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write and log what a step says of itself, with what has been counted until now."""
        report = {**metrics, **self._actors.metrics(), **self._intake.summary(), **self.marks(step)}
        self._last_report = report
        busy = sum(metrics.get(f"{name}_seconds", 0.0) for name in ("step", "publish_stall", "checkpoint_stall"))
        self._ends.append(self._clock())
        self._last_step_at = time.time()
        self._steps.append((busy, metrics.get("wait_seconds", 0.0)))
        for sink in self._sinks:
            sink.write(step, report)
        shown = ", ".join(f"{name} {report[name]:.4g}" for name in LOGGED_METRICS if name in report)
        log.info("step %d: %s", step, shown)
        self._warn_of_disagreement(step, report.get("canary_difference", 0.0))

    def write(self, *, is_over: bool = False) -> None:
        """Write `status.json`, which `dcpo status` and the demo's display read; once it is over, it stays so."""
        self._is_over |= is_over
        self._note_use()
        path = RunFolder(self._config.folder).status
        was_stale, self._is_stale = self._is_stale, False
        try:
            write_json(path, self.content(), indent=None)
        except OSError as error:
            self._is_stale = True
            if not was_stale:
                log.warning("%s stays what it was until it can be written again: %s", path, error)

    def content(self) -> dict[str, Any]:
        """What `status.json` says. Times are seconds since 1970 by this machine's clock."""
        connected, now = self._actors.connected.items(), self._clock()
        return {
            "run_id": self._run_id,
            "incarnation": self._ledger.incarnation,
            "written_at": round(time.time(), 3),
            "started_at": round(self._started_at, 3),
            "release": __version__,
            "process": self._process,
            "is_over": self._is_over,
            "step": self._ranks.step,
            "max_steps": self._config.training.max_steps,
            "last_step_at": self._last_step_at,
            **self._pace(),
            "unsaved_steps": self._ranks.unsaved,
            "settings_set": self.settings_set(),
            "disk_free_bytes": shutil.disk_usage(self._config.folder).free,
            "disk_lacks_bytes": lacking_room(self._config.folder),
            "weights_version": self._intake.versions.newest.weights_version,
            "groups_counted": self._ledger.num_groups,
            "is_finished": self._ranks.is_finished,
            "trainer_restarts": self._ranks.restarts,
            **self._actors.metrics(),
            **self._intake.summary(),
            "evaluation": self._evaluation(now),
            "waiting_for": self._actors.stragglers.waiting_for(now),
            "quarantined": [asdict(row) for row in list(self._intake.quarantined.values())[:SHOWN_QUARANTINED]],
            "refused": self._actors.router.refusals.newest(),
            "canary_bound": self._bound_nats,
            "advice": self.advice(),
            "last_step": self._last_report,
            "actors_connected": [
                self._of_actor(peer, actor, now) for peer, actor in connected if actor.role == "actor"
            ],
            "evaluators_connected": [
                {"session": name_of(peer), "host": actor.host, "weights_version": actor.weights_version}
                for peer, actor in connected
                if actor.role == "evaluator"
            ],
        }

    def _evaluation(self, now: float) -> dict[str, Any] | None:
        """What the run's own evaluations stand at, and since when one that runs has got no answer."""
        status = self._actors.evaluations.status()
        running = status and status["running"]
        if not status or not running:
            return status
        mark = running["evaluation"], running["answered"]
        if mark != self._answered[0]:
            self._answered = mark, now
        return status | {"running": running | {"quiet_seconds": round(now - self._answered[1], 1)}}

    def _pace(self) -> dict[str, float | None]:
        """Seconds from step to step, over the newest, and until the last one at that."""
        if len(self._ends) < 2:
            return {"seconds_per_step": None, "eta_seconds": None}
        seconds = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        last = self._config.training.max_steps
        left = None if last is None else round(seconds * max(0, last - self._ranks.step), 1)
        return {"seconds_per_step": round(seconds, 3), "eta_seconds": left}

    def advice(self) -> str:
        """Which side waits for the other, over the newest steps, and what would help."""
        number = max(1, len(self._steps))
        actors = [actor for actor in self._actors.connected.values() if actor.role == "actor"]
        balance = Balance(
            busy_seconds=sum(busy for busy, _ in self._steps) / number,
            wait_seconds=sum(wait for _, wait in self._steps) / number,
            actor_use=sum(self._uses) / len(self._uses) if self._uses else 1.0,
            learner_gpus=self._num_gpus,
            actor_gpus=sum(actor.gpus for actor in actors),
        )
        return advice(balance)

    def close(self) -> None:
        """Close the sinks."""
        for sink in self._sinks:
            sink.close()

    def _note_use(self) -> None:
        """Note what share of the actors' places for responses is taken, where an actor has any."""
        metrics = self._actors.metrics()
        if metrics["response_capacity"]:
            self._uses.append(metrics["responses_in_flight"] / metrics["response_capacity"])

    def _of_actor(self, peer: bytes, actor: ConnectedActor, now: float) -> dict[str, Any]:
        held = self._intake.table.held.get(peer, {}).values()
        return {
            "session": name_of(peer),
            "host": actor.host,
            "engine": actor.engine,
            "release": actor.release,
            "weights_version": actor.weights_version,
            "canary_difference": actor.canary_difference,
            "activity": actor.activity,
            "tokens_per_second": self._actors.stragglers.progress.pace(peer).speed,
            "groups_in_flight": actor.groups_in_flight,
            "responses_in_flight": actor.responses_in_flight,
            "response_capacity": actor.response_capacity,
            "preemptions": actor.preemptions,
            "groups_accepted": actor.groups_accepted,
            "failures": actor.failures,
            "leases": len(held),
            "oldest_lease_seconds": round(max((now - slot.leased_at for slot in held), default=0.0), 1),
            "heard_seconds_ago": round(now - actor.heard_at, 1),
        }

    def _warn_of_disagreement(self, step: int, nats: float) -> None:
        """Engine and learner at equal versions, whatever the lag; told again only when it has become twice as bad."""
        if nats <= self._warn_above_nats:
            return
        self._warn_above_nats = 2 * nats
        log.warning(
            "step %d: an engine's log-probs of the canary differ by %.3g nats from the trainer's under the same "
            "weights, %g (weights.canary_bound) would refuse them: engine and learner disagree; `dcpo status` names "
            "the actor, bench/logprob_parity.py compares the two",
            step,
            nats,
            self._bound_nats,
        )
