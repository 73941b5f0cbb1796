"""Messages between whoever fetches weights and a weight server, and of relays that ask it whom they may serve."""

from typing import Annotated

from pydantic import Field

from dcpo_async.limits import MAX_PEERS, Name, PublicKey, Sentence, Text
from dcpo_async.protocol.messages import Message
from dcpo_async.records import STRETCH_BYTES, Count


class ManifestWant(Message):
    """Asks for the manifest of a version; 0 asks for the newest."""

    kind = "manifest_want"
    weights_version: Count


class ManifestMessage(Message):
    """The manifest of a version as JSON, or why there is none.

    Whoever runs on the same machine, and finds the same folder there (by device and inode), need not fetch it.
    """

    kind = "manifest"
    weights_version: Count
    manifest_json: Annotated[str, Field(max_length=64 << 20)]
    machine: Text = ""
    folder: Text = ""
    device: Count = 0
    inode: Count = 0
    error: Sentence = ""


class ChunkWant(Message):
    """Asks for bytes of one file of a version, or of a patch that its manifest lists, at most a stretch of them."""

    kind = "chunk_want"
    weights_version: Count
    file: Name
    offset: Count
    num_bytes: Annotated[int, Field(gt=0, le=STRETCH_BYTES)]


class ChunkMessage(Message):
    """The bytes, or why there is none.

    A relay says `later` of a stretch that it waits for itself, again and again: its silence is told from its patience.
    """

    kind = "chunk"
    array_dtypes = {"data": "|u1"}
    weights_version: Count
    file: Name
    offset: Count
    later: bool = False
    error: Sentence = ""


class KeysWant(Message):
    """A relay asks whose keys are admitted; `digest` is of those that it knows."""

    kind = "keys_want"
    digest: Annotated[str, Field(max_length=64)]


class KeysMessage(Message):
    """The actors that are admitted, name and public key of each; none where they are those of the digest asked with."""

    kind = "keys"
    digest: Annotated[str, Field(max_length=64)]
    actors: Annotated[tuple[tuple[Name, PublicKey], ...], Field(max_length=MAX_PEERS)] | None
