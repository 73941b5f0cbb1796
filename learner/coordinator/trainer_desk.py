"""The coordinator's side of its talk with trainer ranks: shards out, facts about the training in."""

import json
import logging
from collections.abc import Callable, Mapping

import numpy as np

from dcpo_async.columns import parted
from dcpo_async.config import RunConfig
from dcpo_async.errors import ProtocolError, TrainerError
from dcpo_async.metrics.timeline import SpanLog
from dcpo_async.protocol.messages import Array, Envelope, Message, Reject
from dcpo_async.protocol.trainer_messages import (
    Checkpointed,
    CheckpointFailed,
    OldLogprobs,
    Published,
    PublishedAck,
    ShardWant,
    StepDone,
    TrainerFinished,
    TrainerHello,
    VersionGrant,
    VersionWant,
)
from dcpo_async.records import TrainingSample
from dcpo_async.run_folder import RunFolder
from dcpo_async.transport.interfaces import Router
from learner.checkpoints.folder import complete_steps
from learner.coordinator.intake import Intake
from learner.coordinator.mail import Mail
from learner.coordinator.shards import (
    looked_at,
    omitted_share,
    sample_cost,
    shard_message,
    split_by_cost,
    step_groups,
    step_metrics,
    step_samples,
)
from learner.ledger.ledger import Ledger

log = logging.getLogger(__name__)

STAGES = (
    ("hand over weights", "publish_stall"),
    ("checkpoint", "checkpoint_stall"),
    ("wait for groups", "wait"),
    ("train", "step"),
)
"""Of a step in the timeline, in the order in which they come, and the metric of each."""
_NO_SHARDS: tuple[int, list[list[TrainingSample]]] = (-1, [])


class TrainerDesk:
    """Answers ranks, and knows how far the training is.

    Args:
        config: of the run.
        intake: batches and versions.
        ledger: what ranks train on, and what they add to it.
        router: that ranks reach.
        mail: takes what is said.
        on_published: called when actors should hear of a new version.
        spans: takes how long steps and publications took.

    Attributes:
        on_step: called with the step that is done, and its metrics.
        settings_of: what was changed of the settings while the run went on, as it is at a step.
        step: optimizer steps that the trainer has taken; before ranks join, those of the newest checkpoint.
        restarts: of the trainer since this start.
        num_published: versions since this start.
        is_finished: whether the trainer has been to the end of the run.
        waiting: ranks whose shard is not there yet, by peer.
    """

    def __init__(
        self,
        config: RunConfig,
        intake: Intake,
        ledger: Ledger,
        router: Router,
        mail: Mail,
        on_published: Callable[[], None],
        spans: SpanLog,
    ) -> None:
        self._config, self._intake, self._ledger, self.router, self._mail = config, intake, ledger, router, mail
        self._on_published, self._spans = on_published, spans
        self.on_step: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None
        self.settings_of: Callable[[int], Mapping[str, float | None]] = lambda step: {}
        self._is_proximal = config.algorithm.old == "proximal"
        self.restarts = self.num_published = 0
        # Where the ranks will say that they are, once they have loaded it.
        self.step = max(complete_steps(RunFolder(config.folder).checkpoints), default=0)
        self._begun = self._saved = self.step
        self._is_stopping = False
        self.is_finished = False
        self.waiting: dict[bytes, ShardWant] = {}
        self._shards = _NO_SHARDS
        self._batch_metrics: dict[int, dict[str, float]] = {}
        self._newest_published = 0
        self._publication: dict[str, float] = {"publish_skipped": 0.0}
        self._checkpoint: dict[str, float] = {"checkpoint_put_off": 0.0, "checkpoint_failures": 0.0}

    def on_envelope(self, peer: bytes, envelope: Envelope) -> None:
        """Take a message of a rank; one that another start of the learner has left behind is turned away."""
        if envelope.incarnation != self._mail.incarnation:
            detail = f"this is start {self._mail.incarnation} of the run, the peer is of start {envelope.incarnation}"
            self._post(peer, Reject(reason="invalid", detail=detail))
            return
        match envelope.message:
            case TrainerHello() as hello:
                self._join(hello)
            case ShardWant() as want:
                self._wait_for_shard(peer, want)
            case VersionWant(step=step):
                self._post(peer, VersionGrant(weights_version=self._intake.grant_version(step), step=step))
            case Published() as published:
                self._take_version(published)
                self._post(peer, PublishedAck(weights_version=published.weights_version, step=published.step))
            case OldLogprobs() as message:
                self._keep_old_logprobs(message, envelope.arrays["old_logprobs"])
            case StepDone() as done:
                self._finish_step(done)
            case Checkpointed() as checkpointed:
                self._take_checkpoint(checkpointed)
            case CheckpointFailed() as failed:
                self._warn_of_checkpoint(failed)
            case other:
                raise TrainerError(f"a trainer rank sent {other.kind}, which ranks do not send")

    def on_refused(self, peer: bytes, error: ProtocolError) -> None:
        """A message could not be read."""
        log.warning("refused a message of a trainer's process: %s", error)

    def serve_shards(self) -> None:
        """Give every waiting rank its shard, as far as the groups are there."""
        for peer, want in list(self.waiting.items()):
            max_steps = self._config.training.max_steps
            is_over = max_steps is not None and want.step >= max_steps
            if is_over or (self._is_stopping and want.step >= self._begun):
                self._post(peer, TrainerFinished(step=want.step, is_stopped=not is_over))
            elif self._intake.commit_batch(want.step):
                self._begin(want.step)
                samples = self._split(want)[want.rank]
                message, arrays = shard_message(samples, want.step)
                settings = dict(self.settings_of(want.step))
                self._mail.post(self.router, peer, message.model_copy(update={"settings": settings}), arrays)
            else:
                continue
            del self.waiting[peer]

    def lose(self, peer: bytes) -> None:
        """A rank cannot be reached."""
        self.waiting.pop(peer, None)

    @property
    def next_free_step(self) -> int:
        """The first step of which nothing is decided: no rank has a shard of it, and no batch is committed for it."""
        return max(self._begun, self._ledger.next_batch_step())

    @property
    def unsaved(self) -> int:
        """Steps that ranks have behind or before them and that no checkpoint contains."""
        return max(0, self._begun - self._saved)

    def stop(self) -> None:
        """Hand out no further batch: ranks end with a checkpoint once they have trained what they were given."""
        self._is_stopping = True

    def finish(self) -> None:
        """The trainer has been to the end of the run."""
        self.is_finished = True
        self._ledger.set_meta("finished_step", str(self.step))

    def restart(self) -> None:
        """All ranks are gone and start again from their newest checkpoint."""
        self.restarts += 1
        self.waiting.clear()
        self._begun = self._saved

    # ---- what comes in

    def _join(self, hello: TrainerHello) -> None:
        if hello.rank == 0:
            self.step = self._begun = self._saved = hello.step
            self._intake.resume(hello.step)
        log.info("trainer rank %d of %d is at step %d", hello.rank, hello.num_ranks, hello.step)

    def _wait_for_shard(self, peer: bytes, want: ShardWant) -> None:
        if want.rank >= want.num_ranks:
            raise TrainerError(f"rank {want.rank} of {want.num_ranks} asked for a shard")
        self.waiting[peer] = want

    def _take_version(self, published: Published) -> None:
        version, step = published.weights_version, published.step
        if self._intake.versions.steps.get(version) != step:
            raise TrainerError(f"version {version} of step {step} was published, which was not granted for that step")
        if version == self._newest_published:
            # Told again, since the answer was late or lost.
            return
        self._newest_published = version
        self.num_published += 1
        self._publication = {
            "publish_seconds": published.seconds,
            "publish_bytes": float(published.num_bytes),
            "publish_patch_bytes": float(published.patch_bytes),
            "publish_skipped": self._publication["publish_skipped"] + published.num_skipped,
        }
        self._spans.add("publisher", "publish", published.seconds, version=version, step=step)
        if self._intake.publish(version):
            self._on_published()

    def _keep_old_logprobs(self, message: OldLogprobs, values: Array) -> None:
        parts = parted(values, message.lengths)
        # Whole before the first row is written: half of a message must not be kept.
        for position, index, part in list(zip(message.positions, message.indices, parts, strict=True)):
            data = np.ascontiguousarray(part, dtype="<f4").tobytes()
            self._ledger.write_old_logprobs(position, index, data)
        # Other ranks still ask for shards of this step, which have them from now on.
        if self._shards[0] == message.step:
            self._shards = _NO_SHARDS

    def _finish_step(self, done: StepDone) -> None:
        if done.step <= self.step:
            return
        self.step = done.step
        trained = done.step - 1
        stages = [(name, done.metrics.get(f"{key}_seconds", 0.0)) for name, key in STAGES]
        self._spans.chain("trainer", stages, step=done.step)
        # Kept until a later step is done: a trainer that starts again may ask for the same shards.
        self._batch_metrics = {step: batch for step, batch in self._batch_metrics.items() if step >= trained}
        batch = self._batch_metrics.get(trained, {})
        self.on_step(done.step, {**done.metrics, **batch, **self._publication, **self._checkpoint})

    def _take_checkpoint(self, checkpointed: Checkpointed) -> None:
        """Delete arrays that every retained checkpoint already contains."""
        self._saved = max(self._saved, checkpointed.step)
        log.info("the checkpoint of step %d stands after %.1f s", checkpointed.step, checkpointed.seconds)
        self._checkpoint |= {
            "checkpoint_seconds": checkpointed.seconds,
            "checkpoint_bytes": float(checkpointed.num_bytes),
            "checkpoint_put_off": self._checkpoint["checkpoint_put_off"] + checkpointed.num_put_off,
        }
        if checkpointed.retained and (released := self._ledger.release_segments(min(checkpointed.retained))):
            log.info("segments %s are in every retained checkpoint and were deleted", json.dumps(released))

    def _warn_of_checkpoint(self, failed: CheckpointFailed) -> None:
        self._checkpoint["checkpoint_failures"] += 1
        log.warning(
            "the checkpoint of step %d could not be written: %s; %s",
            failed.step,
            failed.reason,
            f"the next one is tried, {failed.failures_left} more in a row are borne"
            if failed.failures_left
            else "the run ends when the next one is due",
        )

    # ---- shards

    def _begin(self, step: int) -> None:
        """A shard of `step` is handed out: all ranks need theirs of the whole batch, in which nothing is saved."""
        updates = self._config.algorithm.updates_per_batch
        self._begun = max(self._begun, step - step % updates + updates)

    def _split(self, want: ShardWant) -> list[list[TrainingSample]]:
        step, (cached_step, shards) = want.step, self._shards
        if cached_step == step and len(shards) == want.num_ranks:
            return shards
        groups = step_groups(self._ledger, step, self._intake.prompts, with_old=self._is_proximal)
        of_step = step_samples(groups, step, self._config, self._intake.versions.steps)
        samples = looked_at(of_step, self._config.training.measured_share)
        costs = [sample_cost(sample, want.pair_cost) for sample in samples]
        shards = [[samples[i] for i in shard] for shard in split_by_cost(costs, want.num_ranks)]
        self._shards = (step, shards)
        metrics = step_metrics(groups, self._config.sampling.group_size)
        self._batch_metrics[step] = metrics | {"omitted_share": omitted_share(of_step)}
        return shards

    def _post(self, peer: bytes, message: Message) -> None:
        self._mail.post(self.router, peer, message)
