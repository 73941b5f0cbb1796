"""GPUs: those that are there, those that are asked for, and what the environment tells NCCL."""

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dcpo_async.devices import checked_gpus, count_gpus
from dcpo_async.doctor.findings import Finding, error, said, warning
from dcpo_async.errors import ConfigError

SMI_SECONDS = 20
NETWORKS, RDMA = Path("/sys/class/net"), Path("/sys/class/infiniband")
UNSET = "unset one of the two; what NCCL chooses by itself is right on most machines"


def gpus(devices: Path = Path("/dev")) -> Iterator[Finding]:
    """GPUs that are there and cannot be used."""
    there = sum(path.name[6:].isdecimal() for path in devices.glob("nvidia*"))
    if not there:
        return
    try:
        words = ["nvidia-smi", "--query-gpu=index,driver_version,mig.mode.current", "--format=csv,noheader"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=SMI_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as failure:
        yield error(
            f"{there} GPUs are there and nvidia-smi does not answer: {failure}",
            "the driver is not loaded, or hangs: dmesg says why; a reset of the GPU or of the machine helps",
        )
        return
    for line in done.stdout.splitlines():
        index, _, mode = (field.strip() for field in line.split(",", 2))
        if mode == "Enabled":
            yield error(
                f"GPU {index} is in MIG mode", f"whole GPUs are needed: nvidia-smi -i {index} -mig 0, or others"
            )
    if count_gpus(devices) < there:
        shown = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        yield warning(
            f"CUDA_VISIBLE_DEVICES={shown} shows {count_gpus(devices)} of {there} GPUs", "unset it where all are meant"
        )


def asked(numbers: str) -> Iterator[Finding]:
    """Whether the GPUs that a service is to take are there, and shown to it."""
    try:
        checked_gpus(numbers)
    except ConfigError as failure:
        yield said("error", str(failure), "name GPUs of this machine; nvidia-smi lists them")


def nccl(
    environment: Mapping[str, str] | None = None, networks: Path = NETWORKS, rdma: Path = RDMA
) -> Iterator[Finding]:
    """Settings of NCCL and gloo that name what is not there, or that contradict each other.

    Source: NCCL's user guide, environment variables.
    """
    given = os.environ if environment is None else environment
    for name, folder, kind in (("NCCL_SOCKET_IFNAME", networks, "interface"), ("NCCL_IB_HCA", rdma, "RDMA device")):
        there = _names(folder)
        if given.get(name) and not _chosen(given[name], there):
            yield error(
                f"{name}={given[name]} leaves NCCL no {kind}: this machine has {', '.join(there) or 'none'}",
                f"name one that leads to the other machines, or unset {name}",
            )
    there = _names(networks)
    missing = [name for name in given.get("GLOO_SOCKET_IFNAME", "").split(",") if name and name not in there]
    if missing:
        yield error(
            f"GLOO_SOCKET_IFNAME names {', '.join(missing)}: this machine has {', '.join(there) or 'none'}",
            "name one that leads to the other machines, or unset GLOO_SOCKET_IFNAME",
        )
    for pair in _contradictions(given):
        yield warning(f"{' and '.join(f'{name}={given[name]}' for name in pair)} contradict each other", UNSET)
    if _is_on(given, "NCCL_P2P_DISABLE") and _is_on(given, "NCCL_SHM_DISABLE"):
        yield warning(
            "NCCL_P2P_DISABLE=1 and NCCL_SHM_DISABLE=1: the GPUs of one machine talk over its network",
            "unset NCCL_SHM_DISABLE; where shared memory is short, --shm-size or --ipc=host of the container",
        )


def _contradictions(given: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    if _is_on(given, "NCCL_IB_DISABLE"):
        yield from (("NCCL_IB_DISABLE", name) for name in ("NCCL_IB_HCA", "NCCL_NET_GDR_LEVEL") if given.get(name))
        if given.get("NCCL_NET", "").upper() == "IB":
            yield "NCCL_IB_DISABLE", "NCCL_NET"
    if given.get("NCCL_NET", "").upper() == "SOCKET" and given.get("NCCL_IB_HCA"):
        yield "NCCL_NET", "NCCL_IB_HCA"
    if _is_on(given, "NCCL_P2P_DISABLE") and given.get("NCCL_P2P_LEVEL", "LOC").upper() not in ("LOC", "0"):
        yield "NCCL_P2P_DISABLE", "NCCL_P2P_LEVEL"


def _is_on(given: Mapping[str, str], name: str) -> bool:
    return given.get(name, "0") not in ("", "0")


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _chosen(rule: str, names: Sequence[str]) -> list[str]:
    """Names that a rule of NCCL leaves: beginnings of them, whole ones behind =, and all others behind ^."""
    is_excluding = rule.startswith("^")
    rest = rule.removeprefix("^")
    is_exact = rest.startswith("=")
    # A device may be followed by its port.
    words = [word.partition(":")[0] for word in rest.removeprefix("=").split(",") if word]
    return [
        name
        for name in names
        if any(name == word if is_exact else name.startswith(word) for word in words) != is_excluding
    ]
