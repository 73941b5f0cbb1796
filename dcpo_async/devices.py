"""Which GPUs a service may use: parses `--gpus 0-3`, checks it against this machine, and tells its children."""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dcpo_async.errors import ConfigError

ON_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
"""Environment of processes of one machine that torch connects: what they open to each other, without keys."""
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""Environment variable of torch."""


@dataclass(frozen=True, slots=True)
class Devices:
    """Where the trainer runs: on these GPUs, or as this many processes on the CPU."""

    gpus: tuple[int, ...]
    num_workers: int

    @property
    def dtype(self) -> str:
        """What `model.dtype = auto` means here."""
        return "bfloat16" if self.gpus else "float32"

    def environment(self) -> dict[str, str]:
        """Environment of the trainer ranks."""
        if self.gpus:
            # Several ranks do not compete for cores with threads of their own.
            is_free = self.num_workers > 1 and "OMP_NUM_THREADS" not in os.environ
            threads_of_each = {"OMP_NUM_THREADS": "1"} if is_free else {}
            return {**_allocation(), **cuda_environment(self.gpus), **threads_of_each}
        # An actor usually shares the machine, so that the trainer takes half of the cores unless told otherwise.
        threads = max(1, (os.cpu_count() or 1) // (2 * self.num_workers))
        threads_word = os.environ.get("OMP_NUM_THREADS", str(threads))
        words = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": threads_word}
        # For tensors of 2 MB and more torch asks the kernel for huge pages; glibc then keeps less between them.
        return {**words, HUGE_PAGES: os.environ.get(HUGE_PAGES, "1")}


def parse_gpus(text: str) -> tuple[int, ...]:
    """GPU numbers of a list of numbers and ranges: `parse_gpus("0-2,5")` is `(0, 1, 2, 5)`.

    Raises:
        ConfigError: not such a list, a range that runs backwards, or a number named twice.
    """
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ConfigError(f"--gpus {text}: expected numbers and ranges such as 0-3 or 0,2,5-7")
        numbers += range(int(first), int(last or first) + 1)
        if dash and int(last) < int(first):
            raise ConfigError(f"--gpus {text}: the range {part.strip()} runs backwards")
    if len(set(numbers)) != len(numbers):
        raise ConfigError(f"--gpus {text}: a GPU is named twice")
    return tuple(numbers)


def count_gpus(devices: Path = Path("/dev")) -> int:
    """NVIDIA GPUs that this process may use, counted without touching a driver: CUDA must not start in a launcher."""
    lent = _lent()
    if lent is not None:
        return len(lent)
    return sum(path.name[6:].isdecimal() for path in devices.glob("nvidia*"))


def checked_gpus(text: str) -> tuple[int, ...]:
    """Parse `--gpus` and refuse numbers that this machine does not have; raises ConfigError."""
    numbers, count, lent = parse_gpus(text), count_gpus(), _lent()
    if lent == [] and os.environ["CUDA_VISIBLE_DEVICES"].strip():
        raise ConfigError(
            f"--gpus {text}: CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']} hides every GPU; unset it, or "
            "use --workers N to run on the CPU"
        )
    if max(numbers) >= count:
        found = f"GPUs 0 to {count - 1}" if count else "no GPU"
        raise ConfigError(
            f"--gpus {text}: this machine has {found}; name other numbers, or use --workers N to run on the CPU"
        )
    sliced = [lent[number] for number in numbers if lent[number].startswith("MIG-")] if lent else []
    if sliced:
        raise ConfigError(
            f"--gpus {text}: {sliced[0]} of CUDA_VISIBLE_DEVICES is a slice of a GPU (MIG), on which neither NCCL nor "
            "vLLM works as on a whole one; ask for whole GPUs"
        )
    return numbers


def require_choice() -> None:
    """Refuse a command line that names neither GPUs nor processes where there are GPUs: it was forgotten.

    Raises ConfigError.
    """
    count = count_gpus()
    if count:
        all_of_them = f"0-{count - 1}" if count > 1 else "0"
        raise ConfigError(
            f"this machine has {count} GPUs and none is named: give --gpus {all_of_them}, or --workers N to run on "
            "the CPU"
        )


def cuda_environment(gpus: Sequence[int]) -> dict[str, str]:
    """Environment of a child that shall see these GPUs alone; a scheduler that lent some decides which they are.

    With CUDA_VISIBLE_DEVICES=4,5 set by a scheduler, GPU 1 is device 5.
    """
    lent = _lent()
    names = [str(gpu) if lent is None else lent[gpu] for gpu in gpus]
    return {"CUDA_VISIBLE_DEVICES": ",".join(names), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def _allocation() -> dict[str, str]:
    """Segments that grow: every micro-batch has another shape, which would leave holes; a user's own choice stands.

    For trainer ranks alone: vLLM shares memory between processes in ways that such segments do not allow.
    """
    is_chosen = {"PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"} & os.environ.keys()
    return {} if is_chosen else {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}


def _lent() -> list[str] | None:
    """Devices that CUDA_VISIBLE_DEVICES names; None where it is not set.

    As in CUDA, the first that is no number and no id of a device ends the list: -1, none, void, NoDevFiles.
    """
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    if names is None:
        return None
    named = [name.strip() for name in names.split(",") if name.strip()]
    return list(itertools.takewhile(_is_device, named))


def _is_device(name: str) -> bool:
    return name.isdecimal() or name.startswith(("GPU-", "MIG-"))
