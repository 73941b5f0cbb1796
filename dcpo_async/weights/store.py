"""The weight store: immutable versions, each a whole Hugging Face model folder with its manifest."""

import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import xxhash
from safetensors import SafetensorError
from torch import Tensor

from dcpo_async.errors import WeightsError
from dcpo_async.records import STRETCH_BYTES
from dcpo_async.weights.canary import Canary
from dcpo_async.weights.locks import is_unused, opened
from dcpo_async.weights.manifest import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    PatchEntry,
    TensorEntry,
    is_publishable,
    read_manifest,
)
from dcpo_async.weights.patch_chain import Link
from dcpo_async.weights.places import UNFINISHED, newest_version, patches_folder, version_folder, versions
from dcpo_async.weights.raw import dtype_name
from dcpo_async.weights.stretches import file_digests
from dcpo_async.weights.tensor_file import ADAPTER_CONFIG, ADAPTER_NAME, WEIGHTS_NAME, write_tensors


def write_snapshot(
    store_folder: Path,
    *,
    weights_version: int,
    run_id: str,
    incarnation: int,
    step: int,
    tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    skeleton_folder: Path,
    tied: Mapping[str, str] | None = None,
    canary: Canary | None = None,
    threads: int = 1,
    with_patch: bool = True,
    base_version: int | None = None,
    is_base: bool = False,
) -> Manifest:
    """Publish full weights as a new version: readers see it whole or not at all.

    Nothing is fsynced (decision 19): after a power failure the digests tell a torn version, and a resumed trainer
    publishes its state anew.

    Args:
        store_folder: made if it does not exist; has one writer.
        weights_version: above every version in the store; numbers are never used again.
        tensors: by the names of the model's checkpoint; those named in `tied` are left out.
        skeleton_folder: the model's configuration and tokenizer; not its weights, and no files that could be
            executed or unpickled.
        tied: further names of tensors, each with the name that it stands under.
        canary: what the trainer's model says under these weights.
        threads: tensors compared at once with those of the version before.
        with_patch: beside the version, leave a patch from the newest one that stands, where it is small.
        base_version: of the frozen weights that the tensors, an adapter's, belong to; None for a whole model. The
            skeleton is the adapter's then.
        is_base: these are frozen weights that adapters will belong to.

    Raises:
        WeightsError: the number was used, the skeleton has no configuration, or the disk is full.
    """
    newest = newest_version(store_folder) or 0
    if weights_version <= newest:
        raise WeightsError(
            f"{store_folder} has version {newest}, so {weights_version} cannot be written: numbers only go up"
        )
    weights_name, config_name = WEIGHTS_NAME, "config.json"
    if base_version is not None:
        weights_name, config_name = ADAPTER_NAME, ADAPTER_CONFIG
    if not (skeleton_folder / config_name).is_file():
        raise WeightsError(f"no {config_name} in {skeleton_folder}; it must be a Hugging Face model or peft folder")
    tied = dict(tied or {})
    whole = _storable(tensors, tied)
    # Not writable for others, whatever the umask: actors of this machine read it only then.
    store_folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    with unfinished_folder(store_folder) as folder, unfinished_folder(store_folder) as beside:
        _copy_skeleton(skeleton_folder, folder)
        digests = write_tensors(folder / weights_name, whole)
        weights = FileEntry(name=weights_name, num_bytes=(folder / weights_name).stat().st_size, digests=digests.file)
        patches: tuple[PatchEntry, ...] = ()
        if with_patch and newest and base_version is None:
            link = Link(version_folder(store_folder, newest), weights_version, run_id, weights.num_bytes)
            patches = link.write_patch(beside, whole, digests.tensors, threads)
        others = [path for path in sorted(folder.iterdir()) if path.name != weights_name]
        manifest = Manifest(
            weights_version=weights_version,
            run_id=run_id,
            incarnation=incarnation,
            step=step,
            base_version=base_version,
            is_base=is_base,
            dtype=_main_dtype(whole),
            files=(*map(_file_entry, others), weights),
            tensors=tuple(_tensor_entry(name, tensor, digests.tensors[name]) for name, tensor in whole.items()),
            tied=tied,
            patches=patches,
            canary=canary,
        )
        (folder / MANIFEST_NAME).write_text(manifest.to_json())
        if patches:
            patches_folder(store_folder).mkdir(mode=0o755, exist_ok=True)
            (beside / patches[-1].name).rename(patches_folder(store_folder) / patches[-1].name)
        folder.rename(version_folder(store_folder, weights_version))
    return manifest


def verify(folder: Path, on_progress: Callable[[], None] = lambda: None) -> Manifest:
    """Check every byte of a version's folder against its manifest, in several threads.

    Args:
        on_progress: called after every stretch.

    Raises:
        WeightsError: names the file that is missing, additional, of another length or of other content.
    """
    manifest = read_manifest(folder)
    require_files(folder, manifest, on_progress)
    return manifest


def require_files(folder: Path, manifest: Manifest, on_progress: Callable[[], None] = lambda: None) -> None:
    """Check that a folder has all files of a manifest and no others; raises and reports as `verify` does."""
    found = {path.name for path in folder.iterdir()} | {MANIFEST_NAME}
    listed = {entry.name for entry in manifest.files} | {MANIFEST_NAME}
    if found != listed:
        # A loader takes every weights file that it finds, so that one too many is as bad as one too few.
        raise WeightsError(f"{folder} and its manifest differ in the files {sorted(found ^ listed)[:5]}")
    for entry in manifest.files:
        path = folder / entry.name
        if path.stat().st_size != entry.num_bytes:
            raise WeightsError(f"{path} has {path.stat().st_size} bytes, its manifest says {entry.num_bytes}")
        if file_digests(path, on_progress) != entry.digests:
            raise WeightsError(f"{path} does not match its digest; fetch or publish the version again")


def prune(store_folder: Path, keep: int, protect: Set[int] = frozenset()) -> list[int]:
    """Remove all versions but the newest `keep`, those to protect and those in use; returns what was removed.

    The newest version always stays, and one that is in use until a later call. Frozen weights stay for as long as they
    are the newest ones, or a version that stays belongs to them. Raises ValueError for a `keep` under 1.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}; at least the newest version has to stay")
    standing = {version: _bases(version_folder(store_folder, version)) for version in versions(store_folder)}
    bases = [version for version, (is_base, _) in standing.items() if is_base]
    policies = [version for version in standing if version not in bases]
    needed = {*policies[-keep:], *bases[-1:], *protect}
    needed |= {base for version in needed & standing.keys() if (base := standing[version][1]) is not None}
    superfluous = [version for version in standing if version not in needed]
    removed = [
        version for version in superfluous if discard_unused(version_folder(store_folder, version), if_unlockable=True)
    ]
    prune_patches(store_folder)
    return removed


def newest_policy(store_folder: Path) -> int | None:
    """The newest version that can be sampled from: frozen weights alone are none; None where there is none."""
    policies = (v for v in reversed(versions(store_folder)) if not _bases(version_folder(store_folder, v))[0])
    return next(policies, None)


def newest_base(store_folder: Path, tensors: Mapping[str, Tensor]) -> int | None:
    """The newest frozen weights in a store, where they have the names, types and shapes of these; None else.

    Which values they have is not compared: a store is of one run, and a run keeps its model.
    """
    bases = (v for v in reversed(versions(store_folder)) if _bases(version_folder(store_folder, v))[0])
    for version in bases:
        entries = read_manifest(version_folder(store_folder, version)).tensors
        found = {entry.name: (entry.dtype, entry.shape) for entry in entries}
        same = found == {name: (dtype_name(tensor), tuple(tensor.shape)) for name, tensor in tensors.items()}
        return version if same else None
    return None


def _bases(folder: Path) -> tuple[bool, int | None]:
    """Whether a version is frozen weights, and the version of those that it belongs to; as others where unreadable."""
    try:
        manifest = read_manifest(folder)
    except WeightsError:
        return False, None
    return manifest.is_base, manifest.base_version


def prune_patches(store_folder: Path) -> None:
    """Remove the patches that no version lists, but for those that may belong to one that is about to stand."""
    standing = versions(store_folder)
    listed: set[str] = set()
    for version in standing:
        with contextlib.suppress(WeightsError):
            listed |= {entry.name for entry in read_manifest(version_folder(store_folder, version)).patches}
    for path in patches_folder(store_folder).glob("*.patch"):
        if path.name not in listed and (not standing or path.name <= f"{standing[-1]:08d}.patch"):
            path.unlink(missing_ok=True)


def empty(folder: Path) -> None:
    """Remove everything in a folder."""
    for path in folder.iterdir():
        path.unlink()


def discard(folder: Path) -> None:
    """Remove a version so that no reader ever sees a part of it under its name; missing is fine."""
    # A name takes no room on a full disk, as a folder to move it to would.
    doomed = folder.with_name(f"{UNFINISHED}{uuid4().hex}")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def discard_unused(folder: Path, *, if_unlockable: bool = False, take_away: Callable[[Path], None] = discard) -> bool:
    """Remove a version unless some process holds it; False where one does, or there is none.

    Args:
        if_unlockable: remove it where the file system knows no locks, so that nobody can hold it.
        take_away: called while nobody else can hold it; afterwards nothing has its name.
    """
    try:
        with opened(folder, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
            is_ours = is_unused(descriptor, if_unlockable=if_unlockable)
            # Another process may have removed what was opened, and a new version may stand there by now.
            if not is_ours or not os.path.samestat(os.fstat(descriptor), folder.stat()):
                return False
            take_away(folder)
            return True
    except (FileNotFoundError, NotADirectoryError):
        return False


def remove_unfinished(store_folder: Path) -> None:
    """Remove what a killed writer left; only for the one that may write to the store."""
    for leftover in store_folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def unfinished_folder(store_folder: Path) -> Iterator[Path]:
    """A new folder under a temporary name, to be renamed by the caller; removed where that does not happen.

    What the disk refuses inside, such as more than fits, becomes a WeightsError.
    """
    folder = store_folder / f"{UNFINISHED}{uuid4().hex}"
    try:
        folder.mkdir(mode=0o700)
        yield folder
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot write weights to {store_folder}: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def model_digest(folder: Path) -> str:
    """Digest of weights, configuration and tokenizer: the same for every copy of a model, wherever it lies."""
    state = xxhash.xxh3_128()
    kinds = ("config.json", "*.safetensors", "pytorch_model*.bin", "tokenizer*", "chat_template*")
    for path in sorted(path for kind in kinds for path in folder.glob(kind)):
        state.update(f"{path.name} {file_digest(path)}\n".encode())
    digest: str = state.hexdigest()
    return digest


def _storable(
    tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]], tied: Mapping[str, str]
) -> dict[str, Tensor]:
    """The tensors without the tied names; they are not copied, whatever memory they share."""
    whole: dict[str, Tensor] = {}
    for name, tensor in tensors.items() if isinstance(tensors, Mapping) else tensors:
        if name in whole:
            raise WeightsError(f"tensor {name!r} comes twice; publish each under one name")
        if name not in tied:
            whole[name] = tensor.detach()
    if missing := set(tied.values()) - set(whole):
        raise WeightsError(f"tied names stand for {sorted(missing)[:3]}, which are not among the tensors")
    return whole


def _copy_skeleton(skeleton_folder: Path, folder: Path) -> None:
    for path in skeleton_folder.iterdir():
        is_weights = path.name.endswith((".safetensors", ".index.json", ".patch"))
        if path.is_file() and is_publishable(path.name) and not is_weights:
            # A copy, as a hard link would change with the original.
            shutil.copyfile(path, folder / path.name)


def _main_dtype(tensors: Mapping[str, Tensor]) -> str:
    """The type that most elements have."""
    elements: Counter[str] = Counter()
    for tensor in tensors.values():
        elements[dtype_name(tensor)] += tensor.numel()
    return elements.most_common(1)[0][0] if elements else "float32"


def _file_entry(path: Path) -> FileEntry:
    return FileEntry(name=path.name, num_bytes=path.stat().st_size, digests=file_digests(path))


def _tensor_entry(name: str, tensor: Tensor, digest: str) -> TensorEntry:
    return TensorEntry(name=name, dtype=dtype_name(tensor), shape=tuple(tensor.shape), digest=digest)


def file_digest(path: Path) -> str:
    """The xxh3_128 of a file's bytes."""
    state = xxhash.xxh3_128()
    piece = memoryview(bytearray(STRETCH_BYTES))
    with path.open("rb", buffering=0) as file:
        while num_bytes := file.readinto(piece):
            state.update(piece[:num_bytes])
    digest: str = state.hexdigest()
    return digest
