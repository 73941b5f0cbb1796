"""`python -m dcpo_async.evaluation.copying VERSION WRITING`: a copy of a weights version, as a process of its own.

A coordinator has no room for a model in its memory, and no time for the copying once it is told to end.
"""

import shutil
import sys
from pathlib import Path

from dcpo_async.adapters import write_merged
from dcpo_async.durable import sync_tree
from dcpo_async.errors import DcpoError, WeightsError
from dcpo_async.processes import be_private, kill_group, last_lines, module_argv, spawn
from dcpo_async.weights.manifest import read_manifest
from dcpo_async.weights.store import verify


def write_copy(folder: Path, writing: Path) -> None:
    """Copy a version as a whole model, an adapter merged, and check every byte of the copy; it is on disk then.

    Args:
        folder: of the version, which nobody removes meanwhile.
        writing: of the copy; what lies there goes.

    Raises WeightsError where there is no room for it, or it is not what the manifest says.
    """
    shutil.rmtree(writing, ignore_errors=True)
    manifest = read_manifest(folder)
    try:
        if manifest.base_version is None:
            shutil.copytree(folder, writing)
        else:
            write_merged(folder, manifest, writing)
        verify(writing)
        sync_tree(writing)
    except OSError as error:
        shutil.rmtree(writing, ignore_errors=True)
        raise WeightsError(f"cannot keep a copy of {folder} in {writing.parent}: {error}") from error


async def copied(folder: Path, writing: Path, log_file: Path) -> None:
    """The same by a process, which ends at once where the task is cancelled; what it leaves goes with the next copy.

    Args:
        log_file: for what it says.

    Raises WeightsError as `write_copy` does, and where the process is killed.
    """
    argv = module_argv("dcpo_async.evaluation.copying", str(folder), str(writing))
    process = await spawn(argv, log_file, {"OMP_NUM_THREADS": "1"})
    try:
        code = await process.wait()
    finally:
        kill_group(process)
        await process.wait()
    if code:
        said = last_lines(log_file, 1) if code > 0 else f"killed by signal {-code}, for want of memory?"
        raise WeightsError(f"no copy of {folder}: {said}")


def main() -> int:
    """Write the copy that the words name; returns the exit code."""
    be_private()
    try:
        write_copy(Path(sys.argv[1]), Path(sys.argv[2]))
    except DcpoError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
