"""What this machine has: GPUs, memory, shared memory and disk, asked without starting CUDA."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dcpo_async.devices import Devices, cuda_environment
from dcpo_async.errors import ConfigError
from dcpo_async.run_folder import RunFolder
from learner.weights.host_memory import available

MIB, GB = 1 << 20, 10**9
SMI = ("nvidia-smi", "--query-gpu=index,uuid,memory.total,mig.mode.current", "--format=csv,noheader,nounits")
SMI_SECONDS = 20
USABLE_SHARE = 0.97
"""Of what nvidia-smi calls the total, torch gets so much: 83 GB of an 80 GB card's 85.5."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as nvidia-smi lists it."""

    index: str
    uuid: str
    num_bytes: int
    is_sliced: bool


@dataclass(frozen=True, slots=True)
class Machine:
    """Bytes that a run may take here.

    Attributes:
        gpu: usable of the smallest of its GPUs; None on a CPU, and where nvidia-smi is not there to tell.
        host: of memory that is free or can be freed, within the limit of a container.
        shared: free in /dev/shm, 0 without one.
        disk: free where the run folder is, and what the run has taken of it already.
    """

    gpu: int | None
    host: int
    shared: int
    disk: int


def this_machine(devices: Devices, folder: Path) -> Machine:
    """What there is for a run in a folder; raises ConfigError for GPUs that are sliced."""
    shared = Path("/dev/shm")
    return Machine(
        gpu=smallest_gpu(devices.gpus, listed_gpus()) if devices.gpus else None,
        host=available(),
        shared=shutil.disk_usage(shared).free if shared.is_dir() else 0,
        disk=_disk(folder),
    )


def other_machine(gpu_gib: int) -> Machine:
    """A machine of which the GPUs alone are known."""
    unknown = 1 << 62
    return Machine(int(USABLE_SHARE * gpu_gib * (MIB << 10)), unknown, unknown, unknown)


def listed_gpus() -> list[Gpu]:
    """The GPUs of this machine; none where nvidia-smi is not there, or does not answer."""
    try:
        done = subprocess.run(SMI, capture_output=True, text=True, timeout=SMI_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return parsed_gpus(done.stdout)


def parsed_gpus(text: str) -> list[Gpu]:
    """Read nvidia-smi's lines, such as `0, GPU-5f…, 81559, Disabled`."""
    rows = [[field.strip() for field in line.split(",")] for line in text.splitlines() if line.count(",") == 3]
    return [Gpu(index, uuid, int(mib) * MIB, mode == "Enabled") for index, uuid, mib, mode in rows if mib.isdecimal()]


def smallest_gpu(gpus: Sequence[int], listed: Sequence[Gpu]) -> int | None:
    """Usable bytes of the smallest of these GPUs; None where one of them is not listed.

    Raises ConfigError where one is in MIG mode: NCCL does not train across slices.
    """
    names = cuda_environment(gpus)["CUDA_VISIBLE_DEVICES"].split(",")
    found = [gpu for name in names for gpu in listed if name == gpu.index or gpu.uuid.startswith(name)]
    sliced = [gpu.index for gpu in found if gpu.is_sliced]
    if sliced:
        raise ConfigError(
            f"GPU {sliced[0]} is in MIG mode, and the trainer needs whole GPUs; `nvidia-smi -i {sliced[0]} -mig 0` "
            "makes it one, or name others"
        )
    if not found or len(found) != len(names):
        return None
    return int(USABLE_SHARE * min(gpu.num_bytes for gpu in found))


def _disk(folder: Path) -> int:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    run = RunFolder(folder)
    # Unlike rglob, it passes over a folder that goes while it is looked at: a learner may be at work there.
    walked = (found for part in (run.checkpoints, run.weights) for found in os.walk(part))
    own = (Path(base) / name for base, _, names in walked for name in names)
    return shutil.disk_usage(existing).free + sum(map(_size, own))


def _size(path: Path) -> int:
    """Bytes of a file; 0 for what has gone: actors of the run still let go of versions."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
