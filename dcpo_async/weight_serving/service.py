"""The weight service: answers requests for manifests and stretches from a store, whoever runs it."""

import asyncio
import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcpo_async.errors import PeerLostError, ProtocolError, RevokedError, WeightsError
from dcpo_async.limits import quoted
from dcpo_async.protocol.messages import Envelope, Message, Reject
from dcpo_async.protocol.weight_messages import (
    ChunkMessage,
    ChunkWant,
    KeysMessage,
    KeysWant,
    ManifestMessage,
    ManifestWant,
)
from dcpo_async.supervision import sign_of_progress
from dcpo_async.transport.admission import Admission
from dcpo_async.transport.interfaces import Received, Router
from dcpo_async.weight_serving.shelf import Shelf
from dcpo_async.weights.locks import machine_id

log = logging.getLogger("weight_server")

IDLE_SECONDS = 5.0
SILENCE_SECONDS = 20.0
"""A weight server that has not looked for requests for so long is stopped or stuck."""


async def serve(channel: Router, store_folder: Path, run_id: str, admission: Admission | None = None) -> None:
    """Answer every request from the store, until cancelled; a request that cannot be met is told why.

    Args:
        admission: of the channel, which relays ask for; None where no keys are used.
    """
    shelf = Shelf(store_folder)
    while True:
        sign_of_progress("the weight server answers requests", SILENCE_SECONDS)
        waiting = await channel.receive(IDLE_SECONDS)
        shelf.drop_removed()
        for received in waiting:
            if isinstance(received.envelope, RevokedError):
                continue
            try:
                message, arrays = await _answer(shelf, received, run_id, admission)
            except Exception as error:
                # Whatever a request brings about is its peer's affair, and nobody else's.
                log.exception("a request of %s could not be met", quoted(received.peer))
                message, arrays = Reject(reason="invalid", detail=f"{type(error).__name__}: {error}"), {}
            try:
                await channel.send(received.peer, Envelope(message, arrays, run_id))
            except PeerLostError as error:
                log.warning("an answer is dropped, the actor will ask again: %s", error)


async def _answer(
    shelf: Shelf, received: Received, run_id: str, admission: Admission | None
) -> tuple[Message, dict[str, NDArray[np.uint8]]]:
    envelope = received.envelope
    if isinstance(envelope, ProtocolError):
        log.warning("refused a message of %s: %s", quoted(received.peer), quoted(envelope))
        return Reject(reason="invalid", detail=str(envelope)), {}
    if envelope.run_id != run_id:
        detail = f"this is the weight server of run {run_id}, not of '{quoted(envelope.run_id)}'; start the actor again"
        return Reject(reason="run_id", detail=detail), {}
    match envelope.message:
        case ManifestWant() as want:
            return await asyncio.to_thread(_manifest_message, shelf, want), {}
        case ChunkWant() as want:
            # In this thread: nothing is read but through a map, and a hop would take as long as a chunk.
            return _chunk_message(shelf, want)
        case KeysWant() as want if admission is not None:
            return _keys_message(admission, want), {}
        case other:
            detail = f"a weight server answers manifest_want and chunk_want, not {other.kind}"
            return Reject(reason="invalid", detail=detail), {}


def _keys_message(admission: Admission, want: KeysWant) -> KeysMessage:
    actors = [(holder.name, holder.key) for holder in admission.holders if holder.role == "actor"]
    return KeysMessage(digest=admission.digest, actors=None if want.digest == admission.digest else tuple(actors))


def _manifest_message(shelf: Shelf, want: ManifestWant) -> ManifestMessage:
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


def _chunk_message(shelf: Shelf, want: ChunkWant) -> tuple[ChunkMessage, dict[str, NDArray[np.uint8]]]:
    data, problem = np.empty(0, dtype=np.uint8), ""
    try:
        data = shelf.chunk(want)
    except WeightsError as error:
        problem = str(error)
    message = ChunkMessage(weights_version=want.weights_version, file=want.file, offset=want.offset, error=problem)
    return message, {"data": data}
