"""Chains of sparse patches: from version to version, beside the whole ones in a store."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from dcpo_async.errors import WeightsError
from dcpo_async.weights.manifest import MAX_PATCHES, Manifest, PatchEntry, read_manifest
from dcpo_async.weights.patch import encode_patch
from dcpo_async.weights.places import patches_folder
from dcpo_async.weights.raw import raw_bytes
from dcpo_async.weights.stretches import StretchDigests
from dcpo_async.weights.tensor_file import WEIGHTS_NAME, map_tensors

log = logging.getLogger(__name__)

MOST_OF_WHOLE = 0.5
"""A chain costs at most this share of the whole; a longer one saves too little for the work of applying it."""


MOST_CHANGED = 1 / 3
"""Of more changed elements a patch is not worth a try: they would be stored whole."""
SAMPLED, ENOUGH = 1021, 500


def sampled_share(base: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> float:
    """About which share of all elements differs: one of 1,021 is looked at, by its bits; 0 where that are few."""
    num_sampled = num_changed = 0
    for name, tensor in new.items():
        if name in base and base[name].shape == tensor.shape and base[name].dtype == tensor.dtype:
            size = tensor.element_size()
            sampled = (raw_bytes(which).reshape(-1, size)[::SAMPLED] for which in (tensor, base[name]))
            differs = np.not_equal(*sampled).any(axis=1)
            num_sampled += differs.size
            num_changed += int(np.count_nonzero(differs))
    return num_changed / num_sampled if num_sampled >= ENOUGH else 0.0


@dataclass(frozen=True, slots=True)
class Link:
    """From the version that was written before to the one that is being written.

    Attributes:
        base_folder: of the version before; beside it stand the patches.
        weights_version, run_id, num_bytes: of the version being written; the bytes are those of its weights file.
    """

    base_folder: Path
    weights_version: int
    run_id: str
    num_bytes: int

    def write_patch(
        self, folder: Path, tensors: dict[str, Tensor], digests: Mapping[str, str], threads: int
    ) -> tuple[PatchEntry, ...]:
        """Write the patch into a folder, under its entry's name, where it is worth it; returns the chain it ends.

        Args:
            tensors, digests: of the version being written; xxh3_128 of each.
            threads: tensors compared at once.

        Returns nothing, and says so in the log, where the version before cannot be read or is not of this kind.
        """
        try:
            base = read_manifest(self.base_folder)
            before = self._before(base)
            if (share := sampled_share(before, tensors)) > MOST_CHANGED:
                # As always in float32, where every update moves nearly every element.
                log.info(
                    "version %d has no patch: %.0f %% of its elements have changed", self.weights_version, 100 * share
                )
                return ()
            patch = encode_patch(before, tensors, digests=digests, threads=threads)
        except (WeightsError, OSError) as error:
            log.warning("version %d has no patch: %s", self.weights_version, error)
            return ()
        if len(patch) > MOST_OF_WHOLE * self.num_bytes:
            log.info("version %d has no patch: it would take %d bytes", self.weights_version, len(patch))
            return ()
        stretches = StretchDigests()
        stretches.update(patch)
        entry = PatchEntry(
            base_version=base.weights_version,
            weights_version=self.weights_version,
            num_bytes=len(patch),
            digests=stretches.digests(),
        )
        try:
            (folder / entry.name).write_bytes(patch)
        except OSError as error:
            # The version is worth more than its patch.
            log.warning("version %d has no patch: %s", self.weights_version, error)
            (folder / entry.name).unlink(missing_ok=True)
            return ()
        return self._chain(base, entry)

    def _before(self, base: Manifest) -> dict[str, Tensor]:
        """The tensors of the version before, mapped; raises WeightsError where they are not of this kind."""
        path = self.base_folder / WEIGHTS_NAME
        lengths = {entry.name: entry.num_bytes for entry in base.files}
        # A file that is shorter than it was must not be mapped: reading beyond its end kills the process.
        is_alike = path.stat().st_size == lengths.get(WEIGHTS_NAME) == self.num_bytes
        if base.run_id != self.run_id or not is_alike:
            raise WeightsError(f"{self.base_folder} is of run {base.run_id}, or its weights are of another layout")
        return map_tensors(path)

    def _chain(self, base: Manifest, last: PatchEntry) -> tuple[PatchEntry, ...]:
        """The last patches, as many as stand, are allowed, and are cheaper together than the whole."""
        chain, num_bytes = [last], last.num_bytes
        kept = patches_folder(self.base_folder.parent)
        for entry in reversed(base.patches):
            num_bytes += entry.num_bytes
            is_kept = (kept / entry.name).is_file()
            if not is_kept or len(chain) == MAX_PATCHES or num_bytes > MOST_OF_WHOLE * self.num_bytes:
                break
            chain.append(entry)
        return tuple(reversed(chain))
