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
from dcpo_async.doctor.findings import Finding
from dcpo_async.doctor.network import reachable
from dcpo_async.doctor.run import run


def diagnose(
    *,
    learner: str | None = None,
    run_folder: Path | None = None,
    configs: Sequence[Path] = (),
    keys: Path | None = None,
) -> Iterator[Finding]:
    """All that is wrong.

    Args:
        learner: address that actors of this machine are to reach.
        run_folder: of a run, which is looked at in place of the machine.
        configs: of a run that is to start here: its folder and ports are looked at too.
        keys: folder or file.

    Raises:
        ConfigError: a configuration file is wrong.
    """
    if run_folder is not None:
        yield from run(run_folder)
        return
    looks = (machine.packages, machine.gpus, machine.memory, machine.shared_memory, machine.descriptors)
    for look in (*looks, machine.temporary_folder):
        yield from look()
    if configs:
        config = load_config(configs)
        yield from machine.run_folder(config.folder)
        yield from machine.ports(config.network.listen)
    if keys is not None:
        yield from machine.keys(keys)
    if learner is not None:
        yield from reachable(learner, has_keys=keys is not None)


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
