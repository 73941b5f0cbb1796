"""A version that is an adapter, as a whole model."""

from pathlib import Path

from dcpo_async.adapters.merging import merged, scale_of
from dcpo_async.weights.manifest import Manifest, base_of
from dcpo_async.weights.places import version_folder
from dcpo_async.weights.store import write_snapshot
from dcpo_async.weights.tensor_file import ADAPTER_NAME, WEIGHTS_NAME, map_tensors


def write_merged(folder: Path, manifest: Manifest, writing: Path) -> None:
    """Write the model of an adapter's version, with the adapter added to its weights, under the version's own number.

    Args:
        folder, manifest: of the version; the weights that it belongs to lie beside it.
        writing: does not exist.

    Raises:
        WeightsError: there is no room for it, or the version is not what it says.
        OSError: what the disk refuses.
    """
    base = base_of(folder)
    tensors = merged(map_tensors(base / WEIGHTS_NAME), map_tensors(folder / ADAPTER_NAME), scale_of(folder))
    writing.mkdir()
    write_snapshot(
        writing,
        weights_version=manifest.weights_version,
        run_id=manifest.run_id,
        incarnation=manifest.incarnation,
        step=manifest.step,
        tensors=tensors,
        skeleton_folder=base,
        canary=manifest.canary,
    )
    whole = version_folder(writing, manifest.weights_version)
    for path in whole.iterdir():
        path.rename(writing / path.name)
    whole.rmdir()
