"""Faults of a machine and of the way to a learner, each provoked: found, with what to do; none where all is well."""

import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dcpo_async.doctor import gpus, machine
from dcpo_async.doctor.findings import Finding
from dcpo_async.doctor.network import reachable
from dcpo_async.transport.key_files import load_server_keys, write_peer_keys, write_server_keys
from dcpo_async.transport.security import tcp_parts
from dcpo_async.transport.zmq_channel import RouterChannel, new_pair

AS_ROOT = os.geteuid() == 0


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    assert finding.remedy
    assert "\n" not in finding.what
    return finding


def installed(folder: Path, name: str, version: str, *requires: str) -> None:
    """A package as pip records it."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    lines = [f"Requires-Dist: {text}" for text in requires]
    (info / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines]))


@contextmanager
def listening(address: str = "tcp://127.0.0.1:*", keys: Path | None = None) -> Iterator[str]:
    """A router as a learner has one; where it listens."""
    router = RouterChannel(address, 1 << 20, curve=load_server_keys(keys) if keys else None)
    try:
        yield f"tcp://127.0.0.1:{router.port}"
    finally:
        router.close()


def test_a_package_that_is_missing_or_of_another_version_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    installed(tmp_path, "doctored", "1.0", "doctored-part (==2.0)", "doctored-gone", "doctored-extra ; extra == 'x'")
    installed(tmp_path, "doctored-part", "3.1")
    old, gone = machine.packages("doctored", services=())
    assert (old.severity, old.what) == ("warning", "doctored-part 3.1 is installed, this release was made for ==2.0")
    assert (gone.severity, gone.what) == ("error", "doctored-gone is not installed")
    assert (
        "doctored-a or doctored-b"
        in only(
            f for f in machine.packages("doctored", services=({"doctored-a", "doctored-b"},)) if "or" in f.what.split()
        ).what
    )
    assert "is not installed in this Python" in only(machine.packages("doctored-no-such", services=())).what


def nvidia(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """Two GPUs, and an nvidia-smi that does what a script says."""
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    for number in range(2):
        (folder / f"nvidia{number}").touch()
    return folder


def test_gpus_whose_driver_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        "2 GPUs are there and nvidia-smi does not answer"
        in only(gpus.gpus(nvidia(tmp_path, monkeypatch, "exit 9"))).what
    )


def test_gpus_in_mig_mode_or_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    devices = nvidia(tmp_path, monkeypatch, "echo '0, 570.1, Enabled'; echo '1, 570.1, Disabled'")
    sliced, hidden = gpus.gpus(devices)
    assert (sliced.what, hidden.what) == ("GPU 0 is in MIG mode", "CUDA_VISIBLE_DEVICES=1 shows 1 of 2 GPUs")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert not list(gpus.gpus(nvidia(tmp_path, monkeypatch, "echo '0, 570.1, [N/A]'; echo '1, 570.1, Disabled'")))
    assert not list(gpus.gpus(tmp_path / "elsewhere"))


def test_too_little_memory(tmp_path: Path) -> None:
    assert "0.5 GiB of memory are available" in only(machine.memory(1 << 29)).what
    assert "--check" in only(machine.memory(needed=1 << 60)).remedy
    assert "GiB are free" in only(machine.shared_memory(tmp_path, needed=1 << 60)).what
    assert "cannot be written" in only(machine.shared_memory(tmp_path / "none")).what
    assert not list(machine.shared_memory(tmp_path, needed=1))


def test_too_few_descriptors_in_a_process_of_its_own() -> None:
    program = "from dcpo_async.doctor.machine import descriptors; print([f.what for f in descriptors()])"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, preexec_fn=limit, check=True)
    assert "a process may have 256 open files" in done.stdout
    assert not list(machine.descriptors(needed=1))


def test_a_temporary_folder_that_cannot_be_used(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path_factory.mktemp("t")
    monkeypatch.setattr("tempfile.tempdir", str(place / ("long" * 30)))
    assert "TMPDIR" in only(machine.temporary_folder()).remedy
    monkeypatch.setattr("tempfile.tempdir", str(place))
    assert not list(machine.temporary_folder())


def test_a_run_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "is no folder" in only(machine.run_folder(tmp_path / "file" / "run")).what
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    assert "open to other users (mode 755)" in only(machine.run_folder(tmp_path / "open")).what
    (tmp_path / "open").chmod(0o700)
    assert not list(machine.run_folder(tmp_path / "open"))
    assert not list(machine.run_folder(tmp_path / "new" / "run"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "open"], "nothing is left, nothing is made"


@pytest.mark.skipif(AS_ROOT, reason="root may write everywhere")
def test_a_run_folder_of_another_user(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "cannot be written" in only(machine.run_folder(tmp_path / "run")).what


def test_a_file_system_whose_clock_is_off() -> None:
    assert "-90 s from this machine's" in only(machine.clock(written_at=1000.0, now=1090.0)).what
    assert not list(machine.clock(written_at=1000.0, now=1001.0))


def test_ports_that_are_taken() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"127.0.0.1:{port}, for the coordinator" in next(machine.ports(f"tcp://127.0.0.1:{port}")).what
        assert "for the weight server" in list(machine.ports(f"tcp://127.0.0.1:{port - 1}"))[-1].what
    assert len(list(machine.ports("tcp://192.0.2.1:5557"))) == 2, "no address of this machine"


def test_keys_that_are_missing_or_open_to_others(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    write_server_keys(folder, new_pair())
    file = write_peer_keys(folder, "node-1", "actor", new_pair())
    assert not [*machine.keys(folder), *machine.keys(file)]
    file.chmod(0o644)
    assert "can be read by others" in only(machine.keys(file)).what
    assert "dcpo keygen" in only(machine.keys(tmp_path / "none.keys")).remedy


def test_a_learner_that_is_not_there() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{closed.getsockname()[1]}"
        assert "is the learner up" in only(reachable(address, has_keys=False)).remedy
    assert "has no address" in only(reachable("tcp://no-such-host.invalid:5557", has_keys=False)).what
    assert "is no address" in only(reachable("localhost:5557", has_keys=False)).what


def test_something_else_that_answers_or_nobody_who_does() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        assert "does not answer within" in only(reachable(address, has_keys=False, seconds=0.3)).what

        def answer() -> None:
            for _ in range(2):
                connection, _ = other.accept()
                with connection:
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert "something answers that is no learner" in only(reachable(address, has_keys=False)).what
        thread.join()


async def test_a_learner_that_asks_for_keys_or_has_none(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    write_server_keys(folder, new_pair())
    with listening() as address:
        assert tcp_parts(address) is not None
        assert not list(reachable(address, has_keys=False))
        assert "goes without keys" in only(reachable(address, has_keys=True)).what
    with listening(keys=folder) as address:
        assert not list(reachable(address, has_keys=True))
        assert "asks for keys" in only(reachable(address, has_keys=False)).what
