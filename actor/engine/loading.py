"""Brings versions into an engine's workers: the elements that have changed where that can be done, else all."""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from dcpo_async.errors import EngineError, WeightsError
from dcpo_async.weights.manifest import MANIFEST_NAME, Manifest, PatchEntry, read_manifest
from dcpo_async.weights.patch import changed_indices
from dcpo_async.weights.places import patches_folder
from dcpo_async.weights.stretches import file_digests
from dcpo_async.weights.tensor_file import WEIGHTS_NAME, map_tensors

log = logging.getLogger(__name__)

MOST_BYTES = 256 << 20
"""Of changes: every worker holds them beside a model that has been given nearly all of its memory."""
INDICES, VALUES = "indices ", "values "
"""What stands before a tensor's name: flat indices into it, and the new elements there."""


class Loading:
    """Exchanges the weights of one running engine, or its adapter.

    Args:
        call: has every worker call a method of `WorkerExtension`; returns what each returned, raises EngineError.
        has_adapter: folders hold an adapter; the model's own weights stay as they are.
    """

    def __init__(self, call: Callable[..., Awaitable[list[Any]]], *, has_adapter: bool = False) -> None:
        self._call, self._has_adapter = call, has_adapter
        self._held: Manifest | None = None
        self._next: Manifest | None = None
        self._is_in_place = self._are_taken = False

    async def started_with(self, folder: Path) -> None:
        """The workers hold the weights of a folder, but for its adapter, which they are given here."""
        self._held = _manifest_of(folder)
        if self._has_adapter:
            await self._call("load_adapter", str(folder))
            log.info("updates load the whole adapter")
            return
        whys = [why for why in await self._call("why_not_in_place") if why]
        self._is_in_place = not whys
        log.info("updates %s", f"load all weights: {whys[0]}" if whys else "exchange the elements that have changed")

    async def prepare(self, folder: Path) -> None:
        """Hand the workers what differs in a folder from what they hold, while they generate; where that is known."""
        self._are_taken, self._next = False, await asyncio.to_thread(_manifest_of, folder)
        if self._held is None or self._next is None or not self._is_in_place:
            return
        try:
            with in_memory(await asyncio.to_thread(changes_since, self._held, self._next, folder)) as path:
                await self._call("take_changes", path)
            self._are_taken = True
        except (WeightsError, EngineError, OSError) as error:
            log.info("%s is loaded whole: %s", folder.name, error)

    async def load(self, folder: Path) -> None:
        """Exchange what was prepared from this folder, else all weights; the workers must not generate meanwhile.

        Raises EngineError: the engine died, or holds the weights in part.
        """
        self._held = None
        if not self._are_taken or not await self._has_applied(folder):
            await self._call("load_adapter" if self._has_adapter else "load_folder", str(folder))
        self._held = self._next

    async def _has_applied(self, folder: Path) -> bool:
        try:
            await self._call("apply_changes", str(folder))
        except EngineError as error:
            # What a loader does to one version it does to the next.
            self._is_in_place = False
            log.warning(
                "%s is loaded whole, as are later ones: what has changed cannot be exchanged: %s", folder.name, error
            )
            return False
        return True


def changes_since(held: Manifest, manifest: Manifest, folder: Path) -> dict[str, Tensor]:
    """What differs in a version from the one that is held, by the chain of patches beside its folder.

    Patches tell where, the version itself tells what: a chain of several comes to one change of each element.

    Args:
        held, manifest: of the version that is held, and of the one in the folder.

    Returns:
        For each tensor that changes, int32 [changes] under INDICES and its name, and its elements under VALUES.

    Raises:
        WeightsError: no chain of whole patches leads here from the version that is held, a weight is not a number, or
            changes take more than MOST_BYTES.
    """
    tensors = map_tensors(folder / WEIGHTS_NAME)
    changes = dict[str, Tensor]()
    for name, indices in _changed(patches_folder(folder.parent), _chain(held, manifest)).items():
        flat = tensors[name].reshape(-1)
        places = torch.arange(len(flat), dtype=torch.int32) if indices is None else torch.from_numpy(indices)
        # The index type that vLLM takes without a copy; none of its tensors has more elements.
        changes[INDICES + name], changes[VALUES + name] = places.int(), flat[places]
        if flat.is_floating_point() and bool(changes[VALUES + name].isnan().any()):
            raise WeightsError(f"{name} of version {manifest.weights_version} has weights that are not numbers")
        if sum(tensor.nbytes for tensor in changes.values()) > MOST_BYTES:
            raise WeightsError(f"more of version {manifest.weights_version} has changed than fits beside the model")
    return changes


@contextmanager
def in_memory(changes: dict[str, Tensor]) -> Iterator[str]:
    """A path at which workers of this machine can read changes until the end of the block; nothing is left of it."""
    descriptor = os.memfd_create("dcpo-changes")
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(save(changes))
        yield f"/proc/{os.getpid()}/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _manifest_of(folder: Path) -> Manifest | None:
    """Of the version in a folder; None where it is a model that no learner published."""
    return read_manifest(folder) if (folder / MANIFEST_NAME).exists() else None


def _chain(held: Manifest, manifest: Manifest) -> Sequence[PatchEntry]:
    for first, entry in enumerate(manifest.patches):
        if (held.run_id, held.weights_version) == (manifest.run_id, entry.base_version):
            return manifest.patches[first:]
    raise WeightsError(f"no patches lead from version {held.weights_version} to {manifest.weights_version}")


def _changed(folder: Path, chain: Sequence[PatchEntry]) -> dict[str, NDArray[np.int64] | None]:
    """Which elements of each tensor any patch of a chain overwrites; None for all."""
    found = dict[str, NDArray[np.int64] | None]()
    for entry in chain:
        path = folder / entry.name
        try:
            if file_digests(path) != entry.digests:
                raise WeightsError(f"{path} does not match its digest")
            patch = path.read_bytes()
        except OSError as error:
            raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
        for name, indices in changed_indices(patch).items():
            before = found.get(name, np.empty(0, dtype=np.int64))
            found[name] = None if before is None or indices is None else np.union1d(before, indices)
    return found


@contextmanager
def timed(stage: str, seconds: dict[str, float]) -> Iterator[None]:
    """Note the seconds of what is done within, by the name of the stage."""
    began = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - began
