"""The weight server: hands out manifests and chunks of the versions in a weight store."""

import argparse
import asyncio
import logging
import signal
import sys
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
from dcpo_async.weights.manifest import Manifest
from dcpo_async.weights.store import newest_version, read_manifest, version_folder

log = logging.getLogger("weight_server")

IDLE_SECONDS = 60.0


async def serve(channel: Router, store_folder: Path, run_id: str) -> None:
    """Answer every request from the store, until cancelled; a request that cannot be met is told why."""
    shelf = _Shelf(store_folder)
    while True:
        for received in await channel.receive(IDLE_SECONDS):
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
            return await asyncio.to_thread(_chunk_message, shelf, want)
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
    """Reads the store; manifests are kept, since a version never changes."""

    def __init__(self, store_folder: Path) -> None:
        self._store_folder = store_folder
        self.manifest = lru_cache(maxsize=8)(self._read_manifest)

    def newest(self) -> int:
        version = newest_version(self._store_folder)
        if version is None:
            raise WeightsError("no weights version is published yet; ask again")
        return version

    def folder(self, weights_version: int) -> Path:
        """Where a version stands on this machine."""
        return version_folder(self._store_folder, weights_version).resolve()

    def chunk(self, want: ChunkWant) -> NDArray[np.uint8]:
        """A stretch of a file that the manifest lists; raises WeightsError."""
        manifest = self.manifest(want.weights_version)
        lengths = {entry.name: entry.num_bytes for entry in manifest.files}
        if want.file not in lengths:
            raise WeightsError(f"version {want.weights_version} has no file {want.file!r}")
        if want.offset + want.num_bytes > lengths[want.file]:
            raise WeightsError(
                f"{want.file} has {lengths[want.file]} bytes; asked for {want.num_bytes} from {want.offset} on"
            )
        path = version_folder(self._store_folder, want.weights_version) / want.file
        try:
            with path.open("rb", buffering=0) as file:
                return np.fromfile(file, dtype=np.uint8, count=want.num_bytes, offset=want.offset)
        except OSError as error:
            raise WeightsError(f"version {want.weights_version} is gone: {error.strerror}") from error

    def _read_manifest(self, weights_version: int) -> Manifest:
        folder = version_folder(self._store_folder, weights_version)
        if not folder.is_dir():
            newest = newest_version(self._store_folder)
            raise WeightsError(f"version {weights_version} is not in the store; the newest is {newest}")
        return read_manifest(folder)


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
