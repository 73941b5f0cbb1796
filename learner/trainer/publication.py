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
from learner.weights.layout import own_parts, own_slices, slice_places
from learner.weights.model_folder import export_weights

POLL_SECONDS = 0.02


class Publication:
    """Hands the states of an engine to the publisher; every rank calls every method, in the same order."""

    def __init__(self, engine: TrainEngine, paths: Sequence[Path], deadline_seconds: float) -> None:
        """Prepare the buffers; what they hold of an earlier trainer is no longer offered.

        They are on the first machine. Its ranks copy what every rank holds whole; under ZeRO-3 those of other machines
        send their slices to it, each to the rank of the same local number.

        A publication that goes on under an earlier trainer ends first, so that the coordinator hears of its version
        before it hears of this trainer.

        Args:
            engine: whose weights are published.
            paths: of the shared buffers.
            deadline_seconds: for the end of such a publication.

        Raises TrainerError where it does not end.
        """
        self._engine, self._shared, self._has_buffers = engine, SharedBuffers(paths), engine.rank < engine.num_local
        if engine.rank == 0:
            self._withdraw_and_prepare(deadline_seconds)
        # The others map what rank 0 has made.
        engine.largest_of_ranks(0)
        for buffer in self._shared.buffers if self._has_buffers else ():
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
            yield self._engine.schema.tensors(self._shared.buffers[number].state) if self._has_buffers else {}

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
        while self._has_buffers and self._shared.published < self._shared.offered:
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
            if self._has_buffers:
                self._copy_into(self._states[number])
            else:
                self._send()
            if engine.device.type == "cuda":
                torch.cuda.synchronize()
            engine.largest_of_ranks(0)
            yield number
        finally:
            if engine.rank == 0:
                self._shared.buffers[number].unlock()

    def _copy_into(self, state: Mapping[str, Tensor]) -> None:
        engine = self._engine
        for part in own_parts(engine.model, engine.local_rank, engine.num_local):
            _put(state, part.name, part.start, part.values)
        partners = range(engine.rank + engine.num_local, engine.num_ranks, engine.num_local)
        places = {rank: slice_places(engine.model, rank) for rank in partners}
        sizes = {rank: sum(place.length for place in found) * engine.dtype.itemsize for rank, found in places.items()}
        for rank, taken in engine.swap_slices(None, {rank: size for rank, size in sizes.items() if size}).items():
            values, at = taken.view(engine.dtype), 0
            for place in places[rank]:
                _put(state, place.name, place.start, values[at : at + place.length])
                at += place.length

    def _send(self) -> None:
        """Of a rank of another machine: its slices go to the first one."""
        slices = [part.values.to(self._engine.dtype) for part in own_slices(self._engine.model)]
        if slices:
            self._engine.swap_slices(torch.cat(slices).view(torch.uint8), {})


def _put(state: Mapping[str, Tensor], name: str, start: int, values: Tensor) -> None:
    flat = state[name].reshape(-1)
    flat[start : start + len(values)].copy_(values, non_blocking=True)
