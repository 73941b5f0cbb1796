"""`dcpo doctor`: looks at this machine, at the way to a learner, and at a run; says what is wrong and what to do."""

import json
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from dcpo_async import __version__
from dcpo_async.config.loading import load_config
from dcpo_async.devices import count_gpus
from dcpo_async.doctor import machine
from dcpo_async.doctor.findings import Finding, error, said
from dcpo_async.doctor.gpus import asked, gpus, nccl
from dcpo_async.doctor.network import reachable
from dcpo_async.doctor.round_trip import answered, loopback, peers
from dcpo_async.doctor.run import run
from dcpo_async.doctor.starting import model, refused
from dcpo_async.errors import ConfigError
from dcpo_async.transport.key_files import CurveClient, load_peer_keys


def diagnose(
    *,
    learner: str | None = None,
    run_folder: str | Path | None = None,
    configs: Sequence[Path] = (),
    keys: Path | None = None,
    gpu_numbers: str | None = None,
) -> Iterator[Finding]:
    """All that is wrong.

    Args:
        learner: address that actors of this machine are to reach.
        run_folder: of a run, or its learner's HOST:PORT; it is looked at in place of the machine.
        configs: of a run that is to start here: what it needs is looked at too.
        keys: folder or file.
        gpu_numbers: those that a service is to take, as `--gpus` has them.

    Raises:
        ConfigError: a configuration file is wrong, or no learner answers at `run_folder`.
    """
    if run_folder is not None:
        yield from run(run_folder)
        return
    looks = (machine.packages, machine.memory, machine.shared_memory, machine.descriptors, machine.temporary_folder)
    for look in (*looks, gpus, nccl):
        yield from look()
    if gpu_numbers is not None:
        yield from asked(gpu_numbers)
    is_sound = True
    for finding in _of_keys(keys, is_learners=bool(configs)):
        is_sound = False
        yield finding
    yield from loopback(keys if keys and keys.is_dir() and is_sound else None)
    if configs:
        config = load_config(configs)
        yield from machine.run_folder(config.folder)
        yield from machine.ports(config.network.listen)
        yield from model(config.model.path)
        yield from refused(configs, gpu_numbers)
    if learner is not None:
        yield from _way_to(learner, keys)


def _of_keys(path: Path | None, *, is_learners: bool) -> Iterator[Finding]:
    """What is wrong with keys, by themselves and for the place where they are to be used."""
    if path is None:
        return
    yield from (found := list(machine.keys(path)))
    if found:
        return
    if path.is_dir():
        yield from peers(path)
    elif is_learners and (role := load_peer_keys(path).role) != "rank":
        yield error(
            f"{path} is the file of an {role}, and a learner takes its folder of keys",
            "--keys FOLDER, which `dcpo keygen FOLDER` made; a further machine of a learner has a file of role rank",
        )


def _way_to(learner: str, path: Path | None) -> Iterator[Finding]:
    """What stands between this machine and a learner, nearest first."""
    found = list(reachable(learner, has_keys=path is not None))
    try:
        keys: CurveClient | None = load_peer_keys(path) if path and not found else None
    except ConfigError as failure:
        found = [said("error", str(failure), "name the file of this machine")]
    yield from found or answered(learner, keys)


def tell(findings: Sequence[Finding], *, as_json: bool) -> int:
    """Print what was found; returns the exit code, 1 where anything was."""
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            print(f"{finding.severity}: {finding.what}\n  → {finding.remedy}")
        if not findings:
            print("nothing is wrong")
    return 1 if findings else 0


def described() -> str:
    """This machine in a line."""
    gpus = f"{count_gpus()} GPUs" if count_gpus() else "no GPU"
    return (
        f"dcpo-async {__version__}, Python {platform.python_version()}, Linux {platform.release()}, {gpus}, "
        f"{os.cpu_count()} cores"
    )
