"""The weight server hands out what manifests list, and says why when it cannot."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch

from dcpo_async.protocol.messages import Bye, Envelope, Message, Reject
from dcpo_async.protocol.weight_messages import ChunkMessage, ChunkWant, ManifestMessage, ManifestWant
from dcpo_async.transport.memory_channel import MemoryDealer, MemoryNetwork
from dcpo_async.transport.zmq_channel import DealerChannel
from dcpo_async.weight_serving.service import serve
from dcpo_async.weights.locks import machine_id
from dcpo_async.weights.manifest import Manifest
from dcpo_async.weights.places import version_folder
from dcpo_async.weights.store import discard, write_snapshot
from learner.weights.server import main


def publish(store: Path, version: int, tensors: dict[str, torch.Tensor] | None = None) -> Manifest:
    skeleton = store.parent / "skeleton"
    skeleton.mkdir(exist_ok=True)
    (skeleton / "config.json").write_text('{"model": "tiny"}')
    return write_snapshot(
        store,
        weights_version=version,
        run_id="run",
        incarnation=1,
        step=version,
        tensors=tensors or {"w": torch.arange(100.0) + version},
        skeleton_folder=skeleton,
    )


def told(store: Path, manifest: Manifest) -> ManifestMessage:
    """What the server says of a version: its manifest, and where it stands on this machine."""
    version = manifest.weights_version
    folder = version_folder(store, version).resolve()
    text = ManifestMessage(weights_version=version, manifest_json=manifest.to_json())
    place = {"device": folder.stat().st_dev, "inode": folder.stat().st_ino}
    return text.model_copy(update={"machine": machine_id(), "folder": str(folder), **place})


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
async def actor(store: Path) -> AsyncIterator[MemoryDealer]:
    network = MemoryNetwork()
    serving = asyncio.create_task(serve(network.router(), store, "run"))
    yield network.dealer(b"actor")
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def answer(actor: MemoryDealer, message: Message, run_id: str = "run") -> Envelope:
    await actor.send(Envelope(message, run_id=run_id))
    envelope = await actor.receive(5)
    assert envelope is not None
    return envelope


async def chunk(actor: MemoryDealer, file: str, offset: int, num_bytes: int, version: int = 1) -> Envelope:
    return await answer(actor, ChunkWant(weights_version=version, file=file, offset=offset, num_bytes=num_bytes))


async def test_zero_asks_for_the_newest_manifest_whenever_it_was_published(store: Path, actor: MemoryDealer) -> None:
    for version in (1, 2):
        manifest = publish(store, version)
        envelope = await answer(actor, ManifestWant(weights_version=0))
        assert envelope.message == told(store, manifest)
        assert envelope.run_id == "run"


async def test_an_older_version_is_found_by_its_number(store: Path, actor: MemoryDealer) -> None:
    first = publish(store, 1)
    publish(store, 2)
    message = (await answer(actor, ManifestWant(weights_version=1))).message
    assert message == told(store, first)


async def test_an_empty_store_and_an_unknown_version_are_named(store: Path, actor: MemoryDealer) -> None:
    message = (await answer(actor, ManifestWant(weights_version=0))).message
    assert isinstance(message, ManifestMessage)
    assert "no weights version is published" in message.error
    publish(store, 3)
    message = (await answer(actor, ManifestWant(weights_version=7))).message
    assert isinstance(message, ManifestMessage)
    assert message.error == "version 7 is not in the store; the newest is 3"


async def test_a_chunk_is_the_files_bytes(store: Path, actor: MemoryDealer) -> None:
    publish(store, 1)
    content = (store / "v00000001" / "model.safetensors").read_bytes()
    envelope = await chunk(actor, "model.safetensors", 40, len(content) - 40)
    assert envelope.arrays["data"].tobytes() == content[40:]


@pytest.mark.parametrize(
    ("file", "offset", "num_bytes", "problem"),
    [
        ("manifest.json", 0, 1, "has no file 'manifest.json'"),
        ("../../skeleton/config.json", 0, 1, "has no file"),
        ("/etc/hostname", 0, 1, "has no file"),
        ("config.json", 0, 18, "has 17 bytes; asked for 18 from 0 on"),
        ("config.json", 17, 1, "has 17 bytes; asked for 1 from 17 on"),
        ("config.json", 1 << 60, 1, "has 17 bytes"),
    ],
)
async def test_what_the_manifest_does_not_list_is_not_given(
    store: Path, actor: MemoryDealer, file: str, offset: int, num_bytes: int, problem: str
) -> None:
    publish(store, 1)
    envelope = await chunk(actor, file, offset, num_bytes)
    assert isinstance(envelope.message, ChunkMessage)
    assert problem in envelope.message.error
    assert envelope.arrays["data"].size == 0


async def test_a_version_that_is_removed_while_it_is_fetched_is_named(store: Path, actor: MemoryDealer) -> None:
    publish(store, 1)
    await chunk(actor, "config.json", 0, 5)
    (store / "v00000001").rename(store / ".unfinished-1")
    message = (await chunk(actor, "config.json", 5, 5)).message
    assert isinstance(message, ChunkMessage)
    assert "version 1 is gone" in message.error


def is_mapped(folder: Path) -> bool:
    """Whether this process maps a file of a folder, be it removed."""
    return f"{folder}/" in Path("/proc/self/maps").read_text()


async def test_files_of_a_removed_version_are_let_go(store: Path, actor: MemoryDealer) -> None:
    publish(store, 1)
    publish(store, 2)
    await chunk(actor, "config.json", 0, 5)
    assert is_mapped(store / "v00000001")
    discard(store / "v00000001")
    await answer(actor, ManifestWant(weights_version=0))
    assert not is_mapped(store / "v00000001")
    assert not is_mapped(store)


async def test_a_patch_that_the_manifest_lists_is_given(store: Path, actor: MemoryDealer) -> None:
    publish(store, 1)
    assert publish(store, 2).patches == ()
    tensors = {"w": torch.zeros(10_000)}
    publish(store, 3, tensors)
    tensors["w"][7] = 1
    [patch] = publish(store, 4, tensors).patches
    envelope = await chunk(actor, patch.name, 0, patch.num_bytes, version=4)
    assert envelope.arrays["data"].tobytes() == (store / "patches" / "00000004.patch").read_bytes()
    other = (await chunk(actor, patch.name, 0, 1, version=3)).message
    assert isinstance(other, ChunkMessage)
    assert "version 3 has no file '00000004.patch'" in other.error


async def test_a_file_that_was_cut_is_refused_instead_of_read_beyond_its_end(store: Path, actor: MemoryDealer) -> None:
    publish(store, 1)
    await chunk(actor, "model.safetensors", 0, 5)
    os.truncate(store / "v00000001" / "model.safetensors", 3)
    message = (await chunk(actor, "model.safetensors", 0, 5)).message
    assert isinstance(message, ChunkMessage)
    assert "has 3 bytes, its manifest says" in message.error


async def test_another_run_and_another_kind_of_message_are_refused(actor: MemoryDealer) -> None:
    other_run = (await answer(actor, ManifestWant(weights_version=0), run_id="old")).message
    assert isinstance(other_run, Reject)
    assert (other_run.reason, "not of 'old'" in other_run.detail) == ("run_id", True)
    other_kind = (await answer(actor, Bye(reason="lost my way"))).message
    assert isinstance(other_kind, Reject)
    assert (other_kind.reason, "not bye" in other_kind.detail) == ("invalid", True)


async def test_an_actor_that_left_does_not_stop_the_others(store: Path) -> None:
    publish(store, 1)
    network = MemoryNetwork()
    leaving, staying = network.dealer(b"leaving"), network.dealer(b"staying")
    router = network.router()
    await leaving.send(Envelope(ManifestWant(weights_version=0), run_id="run"))
    leaving.close()
    serving = asyncio.create_task(serve(router, store, "run"))
    assert isinstance((await answer(staying, ManifestWant(weights_version=0))).message, ManifestMessage)
    serving.cancel()


def options(port: int, store: Path) -> list[str]:
    where = ["--listen", f"tcp://127.0.0.1:{port}", "--store", str(store)]
    return [*where, "--run-id", "run"]


def test_an_address_in_use_ends_the_process_with_code_2(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match="2"):
            main(options(port, store))
    assert f"tcp://127.0.0.1:{port} is in use" in capsys.readouterr().err


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


async def test_the_process_serves_over_tcp_until_it_is_told_to_end(store: Path) -> None:
    manifest, port = publish(store, 1), free_port()
    argv = [sys.executable, "-m", "learner.weights.server", *options(port, store)]
    process = await asyncio.create_subprocess_exec(*argv, stderr=subprocess.DEVNULL)
    actor = DealerChannel(f"tcp://127.0.0.1:{port}", 1 << 20, send_timeout_seconds=60)
    try:
        await actor.send(Envelope(ManifestWant(weights_version=0), run_id="run"))
        envelope = await actor.receive(30)
        assert envelope is not None
        assert envelope.message == told(store, manifest)
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 30) == 0
    finally:
        actor.close()
        if process.returncode is None:
            process.kill()
            await process.wait()
