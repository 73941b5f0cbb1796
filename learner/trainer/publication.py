"""A rank's side of publication: it copies its own part of the weights into a shared buffer, and the step goes on."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from dcpo_async.errors import TrainerError
from dcpo_async.run_folder import RunFolder
from dcpo_async.supervision import sign_of_progress
from dcpo_async.weights.canary import Canary
from learner.trainer.engine import TrainEngine
from learner.weights.adapter_folders import export_adapter
from learner.weights.buffers import SharedBuffers
from learner.weights.host_memory import pin
from learner.weights.layout import own_parts
from learner.weights.model_folder import export_weights

POLL_SECONDS = 0.02


class Publication:
    """Hands the states of an engine to the publisher; every rank calls every method, in the same order."""

    def __init__(self, engine: TrainEngine, paths: Sequence[Path], deadline_seconds: float) -> None:
        """Prepare the buffers; what they hold of an earlier trainer is no longer offered.

        A publication that goes on under an earlier trainer ends first, so that the coordinator hears of its version
        before it hears of this trainer.

        Args:
            engine: whose weights are published.
            paths: of the shared buffers.
            deadline_seconds: for the end of such a publication.

        Raises TrainerError where it does not end.
        """
        self._engine, self._shared = engine, SharedBuffers(paths)
        if engine.rank == 0:
            self._withdraw_and_prepare(deadline_seconds)
        # The others map what rank 0 has made.
        engine.largest_of_ranks(0)
        for buffer in self._shared.buffers:
            buffer.populate()
            pin(buffer.state)
        self._states = [engine.schema.layout.tensors(buffer.state) for buffer in self._shared.buffers]

    def offer(self, step: int, canary: Canary | None = None) -> None:
        """Hand over the weights after `step`, and what the model says under them: the next ones to publish."""
        with self._written() as number:
            if self._engine.rank == 0:
                self._shared.offer(number, step, canary)

    @contextmanager
    def whole(self) -> Iterator[Mapping[str, Tensor]]:
        """The weights as they are published, whole in shared memory, for the length of the context.

        A state that is offered and not published yet may be overwritten: `wait` first.
        """
        with self._written() as number:
            yield self._engine.schema.tensors(self._shared.buffers[number].state)

    def export(self, folder: RunFolder, deadline_seconds: float) -> None:
        """See the last weights published, and leave them as a model folder; raises TrainerError."""
        # Before the buffers are used for the export: a state that still waits in one would be overwritten.
        self.wait(deadline_seconds)
        with self.whole() as weights:
            if self._engine.rank == 0:
                if self._engine.has_adapter:
                    export_adapter(folder, weights)
                else:
                    export_weights(folder.export, folder.skeleton, weights)

    def wait(self, deadline_seconds: float) -> None:
        """Wait until the newest state that was offered is published, or was before; raises TrainerError."""
        ends_at = time.monotonic() + deadline_seconds
        while self._shared.published < self._shared.offered:
            if time.monotonic() > ends_at:
                raise TrainerError(f"the last weights were not published within {deadline_seconds:.0f} s")
            words = f"rank {self._engine.rank} waits until its last weights are published"
            sign_of_progress(words, deadline_seconds)
            time.sleep(POLL_SECONDS)

    def _withdraw_and_prepare(self, deadline_seconds: float) -> None:
        ends_at = time.monotonic() + deadline_seconds
        for buffer in self._shared.buffers:
            while not buffer.lock():
                if time.monotonic() > ends_at:
                    raise TrainerError(
                        f"the publisher holds its buffer for over {deadline_seconds:.0f} s; is it stopped?"
                    )
                time.sleep(POLL_SECONDS)
            try:
                buffer.prepare(self._engine.schema)
            finally:
                buffer.unlock()

    @contextmanager
    def _written(self) -> Iterator[int]:
        """The number of a buffer that holds the weights, claimed by rank 0 for the length of the context."""
        engine = self._engine
        number = engine.largest_of_ranks(self._shared.claim() if engine.rank == 0 else -1)
        try:
            state = self._states[number]
            for part in own_parts(engine.model, engine.rank, engine.num_ranks):
                flat = state[part.name].reshape(-1)
                flat[part.start : part.start + len(part.values)].copy_(part.values, non_blocking=True)
            if engine.device.type == "cuda":
                torch.cuda.synchronize()
            engine.largest_of_ranks(0)
            yield number
        finally:
            if engine.rank == 0:
                self._shared.buffers[number].unlock()
