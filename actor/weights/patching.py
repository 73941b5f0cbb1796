"""Makes a version from an earlier one at hand and the patches between: few bytes to download, the same to show."""

import asyncio
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from actor.weights.download import Download
from actor.weights.spare import new_file
from dcpo_async.errors import WeightsError
from dcpo_async.weights.locks import hold, let_go
from dcpo_async.weights.manifest import FileEntry, Manifest, PatchEntry, read_manifest
from dcpo_async.weights.patch import change_in_place
from dcpo_async.weights.places import patches_folder
from dcpo_async.weights.store import require_files, unfinished_folder
from dcpo_async.weights.stretches import file_digests, worker_count
from dcpo_async.weights.tensor_file import WEIGHTS_NAME, map_tensors


@dataclass(frozen=True, slots=True)
class Way:
    """From a version whose folder is at hand, by patches in their order."""

    version: int
    folder: Path
    patches: tuple[PatchEntry, ...]


def way_from(bases: Mapping[int, Path], manifest: Manifest) -> Way | None:
    """The shortest way to a version; None where no patch starts at one of these, or the whole is not longer."""
    whole = sum(entry.num_bytes for entry in manifest.files)
    for first in reversed(range(len(manifest.patches))):
        patches = manifest.patches[first:]
        if (version := patches[0].base_version) in bases:
            is_shorter = sum(entry.num_bytes for entry in patches) < whole
            return Way(version, bases[version], patches) if is_shorter else None
    return None


async def patch_up(
    way: Way, manifest: Manifest, writing: Path, download: Download, report_progress: Callable[[], None]
) -> None:
    """Fill an unfinished folder with a version's files; the result is checked against its manifest, byte for byte.

    Patches stay in the cache, beside its versions, as they do in a store.

    Raises:
        WeightsError: the base is gone or another, a patch does not apply, or the result does not match; the folder may
            hold anything then.
        OSError: what the disk refuses.
    """
    version = manifest.weights_version
    held = hold(way.folder)
    if held is None:
        raise WeightsError(f"{way.folder} is gone")
    try:
        base = await asyncio.to_thread(_base_manifest, way, manifest)
        await _fetch_patches(way, version, writing.parent, download)
        copied, missing = _sorted_out(base, manifest)
        await download.fetch(writing, version, missing)
        for name in copied:
            await asyncio.to_thread(_copy, way.folder / name, writing / name, report_progress)
        patches = [patches_folder(writing.parent) / entry.name for entry in way.patches]
        await asyncio.to_thread(_change, writing / WEIGHTS_NAME, patches, report_progress)
        await asyncio.to_thread(require_files, writing, manifest, report_progress)
    finally:
        let_go(held)


def _base_manifest(way: Way, manifest: Manifest) -> Manifest:
    base = read_manifest(way.folder)
    if (base.run_id, base.weights_version) != (manifest.run_id, way.version):
        raise WeightsError(f"{way.folder} holds version {base.weights_version} of run {base.run_id}")
    return base


async def _fetch_patches(way: Way, version: int, cache: Path, download: Download) -> None:
    """Bring the patches that are not here into the cache, whole and under their names."""
    kept = patches_folder(cache)
    kept.mkdir(mode=0o755, exist_ok=True)
    missing = await asyncio.to_thread(lambda: [entry for entry in way.patches if not _is_kept(kept, entry)])
    with unfinished_folder(cache) as folder:
        await download.fetch(folder, version, missing)
        for entry in missing:
            (folder / entry.name).rename(kept / entry.name)


def _sorted_out(base: Manifest, manifest: Manifest) -> tuple[list[str], list[FileEntry]]:
    """The files to copy from the base, the weights among them, and those to download."""
    of_base = {entry.name: entry for entry in base.files}
    old, new = (
        next((entry for entry in found.files if entry.name == WEIGHTS_NAME), None) for found in (base, manifest)
    )
    if old is None or new is None or old.num_bytes != new.num_bytes:
        raise WeightsError(f"{WEIGHTS_NAME} of version {base.weights_version} has another layout")
    is_same = {entry.name: of_base.get(entry.name) == entry or entry.name == WEIGHTS_NAME for entry in manifest.files}
    copied = [name for name, same in is_same.items() if same]
    return copied, [entry for entry in manifest.files if not is_same[entry.name]]


_COPIED_BYTES = 64 << 20


def _copy(source: Path, target: Path, report_progress: Callable[[], None]) -> None:
    """Copy a file within the kernel, by reference where the file system can."""
    new_file(target, source.stat().st_size)
    with source.open("rb", buffering=0) as read, target.open("r+b", buffering=0) as written:
        try:
            while os.copy_file_range(read.fileno(), written.fileno(), _COPIED_BYTES):
                report_progress()
        except OSError:
            # Not between these two file systems, or not at all.
            read.seek(0)
            written.seek(0)
            shutil.copyfileobj(read, written, _COPIED_BYTES)
            report_progress()


def _change(weights: Path, patches: list[Path], report_progress: Callable[[], None]) -> None:
    """Apply patches one after another to a file's own pages."""
    tensors = map_tensors(weights, for_change=True)
    for path in patches:
        change_in_place(tensors, path.read_bytes(), threads=worker_count())
        report_progress()


def _is_kept(folder: Path, entry: PatchEntry) -> bool:
    try:
        return file_digests(folder / entry.name) == entry.digests
    except OSError:
        return False
