"""One trainer rank's work: shards in, optimizer steps, weights and checkpoints out. MAIN LOOP."""

import dataclasses
import logging
import math
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from dcpo_async.columns import joined
from dcpo_async.config import RunConfig
from dcpo_async.protocol.trainer_messages import OldLogprobs, StepDone
from dcpo_async.records import TrainingSample
from dcpo_async.run_folder import RunFolder
from learner.checkpoints.places import newest_step
from learner.checkpoints.saving import Checkpoints
from learner.timing.profiling import StepProfiler
from learner.timing.step_clock import StepClock
from learner.trainer.canary import canary_of, canary_tokens
from learner.trainer.coordinator_link import RankLink
from learner.trainer.engine import TrainEngine
from learner.trainer.passes import Passes
from learner.trainer.publication import Publication
from learner.trainer.step_sums import StepSums

log = logging.getLogger(__name__)


class Trainer:
    """What a rank does with its engine, step by step.

    Attributes:
        step: optimizer steps done.
    """

    def __init__(self, config: RunConfig, engine: TrainEngine, link: RankLink, publication: Publication) -> None:
        self.config, self.engine, self.link, self.publication = config, engine, link, publication
        self.folder = RunFolder(config.folder)
        self.checkpoints = Checkpoints(config, engine, link.tell)
        self.step = 0
        self.wait_seconds = self.publish_stall_seconds = self.checkpoint_stall_seconds = 0.0
        self.passes = Passes(config.algorithm, engine)
        self.clock = StepClock(engine.device, engine.model)
        self.profiler = StepProfiler(config.training.profile, self.folder.timing, engine.rank)
        vocab_size = min(len(engine.tokenizer), engine.model.get_input_embeddings().num_embeddings)
        self.canary_tokens = canary_tokens(vocab_size, config.weights.canary_tokens, config.seed)

    async def train(self) -> None:
        """Train until the coordinator says that the run has reached its end, or is stopped."""
        self.resume()
        await self.link.join(self.step)
        self.publish()
        while batch := await self.next_batch():
            for samples in batch:
                with self.profiler.around(self.step + 1):
                    metrics = self.train_step(samples)
                await self.report(metrics)
                if self.step % self.config.lag.publish_interval == 0:
                    self.publish()
            self.checkpoint()
        await self.finish()

    def train_step(self, samples: Sequence[TrainingSample]) -> dict[str, float]:
        """Take one optimizer step on this rank's shard, and return the metrics of the whole step."""
        self.clock.start()
        rate = self.engine.set_learning_rate(self.step)
        # A function of the step alone: a resumed run has the random numbers of one that never stopped.
        torch.manual_seed((self.config.seed << 32) + self.step)
        sums = StepSums(self.engine.device, self.passes.penalties)
        with_gradient = [sample for sample in samples if sample.has_gradient]
        plan = self.passes.plan(with_gradient, at_least=1)
        for number, chosen in enumerate(plan, start=1):
            self.forward_backward_step([with_gradient[i] for i in chosen], sums, is_last=number == len(plan))
        self.passes.measure([sample for sample in samples if not sample.has_gradient], sums)
        with self.clock.part("optimizer"):
            gradient_norm = self.engine.update(self.step)
        self.step += 1
        self.engine.add_over_ranks(sums.values)
        metrics = sums.summary()
        metrics |= self.clock.summary(metrics["tokens"], self.engine.num_ranks)
        metrics |= {name: float(self.engine.largest_of_ranks(peak)) for name, peak in self.clock.peaks().items()}
        return metrics | {
            "grad_norm": gradient_norm if gradient_norm is not None else 0.0,
            "grad_clipped": float((gradient_norm or 0.0) > self.config.training.gradient_clip),
            "step_skipped": float(gradient_norm is None),
            "learning_rate": rate,
            "wait_seconds": self.wait_seconds,
            "publish_stall_seconds": self.publish_stall_seconds,
            "checkpoint_stall_seconds": self.checkpoint_stall_seconds,
        }

    def forward_backward_step(self, samples: Sequence[TrainingSample], sums: StepSums, *, is_last: bool) -> None:
        """Add one micro-batch's share of the gradient; token weights are those of the whole step."""
        with self.clock.part("forward"):
            loss = self.engine.failing_together(self.step, lambda: self.loss(samples, sums))
        with self.clock.part("backward"):
            self.engine.backward(loss, is_last=is_last)

    def loss(self, samples: Sequence[TrainingSample], sums: StepSums) -> Tensor:
        """Return the micro-batch's share of the step's loss, and add its diagnostics to the sums."""
        batch = self.passes.packed(samples)
        loss = self.passes.loss_of(batch)
        is_whole = self.config.algorithm.ratio == "sequence"
        scores = self.engine.policy(batch, lambda logprobs, tokens: loss(logprobs, tokens).loss, is_whole=is_whole)
        sums.add(batch, scores, loss(scores.logprobs, slice(None)))
        return scores.loss

    async def next_batch(self) -> list[list[TrainingSample]]:
        """This rank's shards of the batch's updates: fewer at the run's last step, none when no more will come."""
        algorithm = self.config.algorithm
        started, updates = time.monotonic(), algorithm.updates_per_batch
        shards: list[list[TrainingSample]] = []
        for step in range(self.step, self.step - self.step % updates + updates):
            if (shard := await self.link.ask_for_shard(step)) is None:
                break
            shards.append(shard)
        self.wait_seconds = (time.monotonic() - started) / max(1, len(shards))
        if algorithm.old == "proximal":
            return [await self.anchored(step, shard) for step, shard in enumerate(shards, start=self.step)]
        return shards

    async def anchored(self, step: int, samples: list[TrainingSample]) -> list[TrainingSample]:
        """The samples with old log-probs; those that the ledger does not have are computed and handed over."""
        is_missing = [bool(np.isnan(sample.old_logprobs).any()) for sample in samples]
        if not self.engine.largest_of_ranks(int(any(is_missing))):
            return samples
        samples = [
            dataclasses.replace(sample, old_logprobs=logprobs) if missing else sample
            for sample, logprobs, missing in zip(samples, self.passes.logprobs(samples), is_missing, strict=True)
        ]
        message = OldLogprobs(
            step=step,
            positions=tuple(sample.position for sample in samples),
            indices=tuple(sample.index for sample in samples),
            lengths=tuple(len(sample.token_ids) for sample in samples),
        )
        await self.link.tell_once(message, {"old_logprobs": joined([one.old_logprobs for one in samples], "<f4")})
        return samples

    async def report(self, metrics: Mapping[str, float]) -> None:
        """Tell the coordinator that a step is done, in finite numbers: no others can be sent."""
        if self.engine.rank == 0:
            finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
            await self.link.tell(StepDone(step=self.step, metrics=finite))
        self.checkpoint_stall_seconds = 0.0

    def publish(self) -> None:
        """Hand the weights to the publisher, which writes them as a new version while the training goes on."""
        started = time.monotonic()
        self.publication.offer(self.step, canary_of(self.engine, self.canary_tokens, self.config.weights.canary_bound))
        self.publish_stall_seconds = time.monotonic() - started

    def checkpoint(self) -> None:
        """Copy the state if a checkpoint is due; it is written while the training goes on."""
        started = time.monotonic()
        self.checkpoints.offer(self.step)
        self.checkpoint_stall_seconds = time.monotonic() - started

    def resume(self) -> None:
        """Load the newest checkpoint, if there is one."""
        step = newest_step(self.folder.checkpoints, self.engine)
        if step:
            self.engine.load(self.folder.checkpoints, step, self.config.digest())
            self.step = step
            log.info("resumed from step %d", step)
        self.checkpoints.begin(step)

    async def finish(self) -> None:
        """Leave a last checkpoint and, at the run's end, a model folder, once the last weights are published."""
        self.profiler.close()
        await self.checkpoints.offer_last(self.step)
        if not self.link.is_stopped:
            self.publication.export(self.folder, self.config.training.step_timeout_seconds)
        await self.checkpoints.whole()
