"""The weight server: hands out manifests and chunks of the versions in a weight store."""

import argparse
import asyncio
import logging
import mmap
import os
import signal
import sys
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcpo_async.errors import DcpoError, PeerLostError, ProtocolError, WeightsError
from dcpo_async.protocol.messages import Envelope, Message, Reject
from dcpo_async.protocol.weight_messages import ChunkMessage, ChunkWant, ManifestMessage, ManifestWant
from dcpo_async.transport.interfaces import MAX_MESSAGE_BYTES, Received, Router
from dcpo_async.transport.security import load_server_keys
from dcpo_async.transport.zmq_channel import RouterChannel
from dcpo_async.weights.locks import machine_id
from dcpo_async.weights.manifest import Manifest, read_manifest
from dcpo_async.weights.patch_chain import patches_folder
from dcpo_async.weights.store import newest_version, version_folder

log = logging.getLogger("weight_server")

IDLE_SECONDS = 10.0
MAX_MAPS = 16
"""Files whose maps are kept."""


async def serve(channel: Router, store_folder: Path, run_id: str) -> None:
    """Answer every request from the store, until cancelled; a request that cannot be met is told why."""
    shelf = _Shelf(store_folder)
    while True:
        waiting = await channel.receive(IDLE_SECONDS)
        shelf.drop_removed()
        for received in waiting:
            message, arrays = await _answer(shelf, received, run_id)
            try:
                await channel.send(received.peer, Envelope(message, arrays, run_id))
            except PeerLostError as error:
                log.warning("an answer is dropped, the actor will ask again: %s", error)


async def _answer(shelf: "_Shelf", received: Received, run_id: str) -> tuple[Message, dict[str, NDArray[np.uint8]]]:
    envelope = received.envelope
    if isinstance(envelope, ProtocolError):
        log.warning("peer %r sent a malformed message: %s", received.peer, envelope)
        return Reject(reason="invalid", detail=str(envelope)), {}
    if envelope.run_id != run_id:
        detail = f"this is the weight server of run {run_id}, not of {envelope.run_id!r}; start the actor again"
        return Reject(reason="run_id", detail=detail), {}
    match envelope.message:
        case ManifestWant() as want:
            return await asyncio.to_thread(_manifest_message, shelf, want), {}
        case ChunkWant() as want:
            # In this thread: nothing is read but through a map, and a hop would take as long as a chunk.
            return _chunk_message(shelf, want)
        case other:
            detail = f"a weight server answers manifest_want and chunk_want, not {other.kind}"
            return Reject(reason="invalid", detail=detail), {}


def _manifest_message(shelf: "_Shelf", want: ManifestWant) -> ManifestMessage:
    try:
        manifest = shelf.manifest(want.weights_version or shelf.newest())
    except WeightsError as error:
        return ManifestMessage(weights_version=want.weights_version, manifest_json="", error=str(error))
    text = ManifestMessage(weights_version=manifest.weights_version, manifest_json=manifest.to_json())
    return text.model_copy(update=_place_of(shelf.folder(manifest.weights_version)))


def _place_of(folder: Path) -> dict[str, str | int]:
    """What tells a peer that a folder of its own is this one; nothing where its name cannot be sent."""
    try:
        found = folder.stat()
        str(folder).encode()
    except (OSError, UnicodeEncodeError):
        return {}
    return {"machine": machine_id(), "folder": str(folder), "device": found.st_dev, "inode": found.st_ino}


def _chunk_message(shelf: "_Shelf", want: ChunkWant) -> tuple[ChunkMessage, dict[str, NDArray[np.uint8]]]:
    data, problem = np.empty(0, dtype=np.uint8), ""
    try:
        data = shelf.chunk(want)
    except WeightsError as error:
        problem = str(error)
    message = ChunkMessage(weights_version=want.weights_version, file=want.file, offset=want.offset, error=problem)
    return message, {"data": data}


class _Shelf:
    """Reads the store; manifests and maps of files are kept, since a version never changes."""

    def __init__(self, store_folder: Path) -> None:
        self._store_folder = store_folder
        self.manifest = lru_cache(maxsize=8)(self._read_manifest)
        self._maps: OrderedDict[Path, _MappedFile] = OrderedDict()

    def newest(self) -> int:
        version = newest_version(self._store_folder)
        if version is None:
            raise WeightsError("no weights version is published yet; ask again")
        return version

    def folder(self, weights_version: int) -> Path:
        """Where a version stands on this machine."""
        return version_folder(self._store_folder, weights_version).resolve()

    def chunk(self, want: ChunkWant) -> NDArray[np.uint8]:
        """Bytes of a file or a patch that the manifest lists, in the pages of its file; raises WeightsError."""
        path, num_bytes = self._listed(want)
        if want.offset + want.num_bytes > num_bytes:
            raise WeightsError(f"{want.file} has {num_bytes} bytes; asked for {want.num_bytes} from {want.offset} on")
        try:
            return self._mapped(path, num_bytes).read(want.offset, want.num_bytes)
        except OSError as error:
            self._maps.pop(path, None)
            raise WeightsError(f"{want.file} of version {want.weights_version} is gone: {error.strerror}") from error

    def drop_removed(self) -> None:
        """Let go of files that were removed, so that their disk space is free."""
        for path in [path for path in self._maps if not path.exists()]:
            del self._maps[path]

    def _listed(self, want: ChunkWant) -> tuple[Path, int]:
        manifest = self.manifest(want.weights_version)
        for entry in manifest.files:
            if entry.name == want.file:
                return version_folder(self._store_folder, want.weights_version) / want.file, entry.num_bytes
        for patch in manifest.patches:
            if patch.name == want.file:
                return patches_folder(self._store_folder) / want.file, patch.num_bytes
        raise WeightsError(f"version {want.weights_version} has no file {want.file!r}")

    def _mapped(self, path: Path, num_bytes: int) -> "_MappedFile":
        """A file's map, made anew where another file stands under its name by now."""
        found = path.stat()
        mapped = self._maps.pop(path, None)
        if mapped is None or mapped.identity != (found.st_dev, found.st_ino):
            mapped = _MappedFile(path)
        if found.st_size != num_bytes:
            # What is beyond the end of a file cannot be read: the process would be killed.
            raise WeightsError(f"{path} has {found.st_size} bytes, its manifest says {num_bytes}")
        self._maps[path] = mapped
        while len(self._maps) > MAX_MAPS:
            self._maps.popitem(last=False)
        return mapped

    def _read_manifest(self, weights_version: int) -> Manifest:
        folder = version_folder(self._store_folder, weights_version)
        if not folder.is_dir():
            newest = newest_version(self._store_folder)
            raise WeightsError(f"version {weights_version} is not in the store; the newest is {newest}")
        return read_manifest(folder)


class _MappedFile:
    """A file's pages: what is sent is not copied before; they stay for as long as anything is on its way."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            self.identity = (found.st_dev, found.st_ino)
            self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self._bytes = np.frombuffer(self._map, dtype=np.uint8)

    def read(self, offset: int, num_bytes: int) -> NDArray[np.uint8]:
        """Bytes that the disk begins to read, where they are not in memory, before they are sent."""
        start = offset - offset % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_WILLNEED, start, offset + num_bytes - start)
        return self._bytes[offset : offset + num_bytes]


async def _serve_until_told(options: argparse.Namespace) -> None:
    curve = load_server_keys(options.keys) if options.keys else None
    channel = RouterChannel(options.listen, MAX_MESSAGE_BYTES, curve, insecure=options.insecure)
    serving = asyncio.create_task(serve(channel, options.store, options.run_id))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.cancel)
    log.info("serving the weights of run %s on port %d", options.run_id, channel.port)
    try:
        await asyncio.wait({serving})
        if not serving.cancelled():
            serving.result()
    finally:
        channel.close()


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits 0 on SIGTERM, 2 when it cannot listen, 1 on a failure."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", datefmt="%H:%M:%S")
    parser = argparse.ArgumentParser(prog="learner.weights.server", description="Serve published weights.")
    parser.add_argument("--listen", required=True, help="address, such as tcp://127.0.0.1:5558")
    parser.add_argument("--store", required=True, type=Path, help="folder of the weight store")
    parser.add_argument("--run-id", required=True)
    parser.add_argument("--keys", type=Path, help="folder of the CURVE keys")
    parser.add_argument("--insecure", action="store_true", help="listen off loopback without keys")
    try:
        asyncio.run(_serve_until_told(parser.parse_args(argv)))
    except DcpoError as error:
        print(f"dcpo-learner: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
