"""How groups lie in the segments of a ledger: the newest format is written, every one can be read.

These formats have nothing to do with the network's messages, which may change while a run goes on. A new format gets
a number and a decoder here; the decoders of the old ones stay as they are.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgpack
import numpy as np

from dcpo_async.columns import joined, parted
from dcpo_async.errors import LedgerError
from dcpo_async.records import Group, Response, VersionSegment

GROUP_FORMAT = 2


def encode_group(group: Group) -> tuple[bytes, ...]:
    """The parts of a group's record in GROUP_FORMAT.

    A JSON object of position, attempt, and columns with an entry for each response: lengths, segments as pairs of
    version and number of tokens, finish_reasons, rewards as the actor gave them, reasons, texts. Then the token ids
    (int32) and the behavior log-probs (float32) of all responses, one after another, little-endian.
    """
    responses = group.responses
    header = {
        "position": group.position,
        "attempt": group.attempt,
        "lengths": [len(response.token_ids) for response in responses],
        "segments": [response.segments for response in responses],
        "finish_reasons": [response.finish_reason for response in responses],
        "rewards": group.rewards,
        "reasons": group.reasons,
        "texts": [response.text for response in responses],
    }
    token_ids = joined([response.token_ids for response in responses], "<i4")
    logprobs = joined([response.behavior_logprobs for response in responses], "<f4")
    return json.dumps(header, ensure_ascii=False).encode(), token_ids.tobytes(), logprobs.tobytes()


def decode_group(group_format: int, parts: Sequence[bytes]) -> Group:
    """The group of a record; its arrays are views of the parts.

    Raises LedgerError for the format of a later release.
    """
    decode = _DECODERS.get(group_format)
    if decode is None:
        raise LedgerError(
            f"a group lies in format {group_format} of the ledger, this release knows {sorted(_DECODERS)}: "
            "read it with the release that wrote it, or a later one"
        )
    return decode(parts)


def _decode_format_1(parts: Sequence[bytes]) -> Group:
    """The frames of protocol version 2: a msgpack map whose `body` has the columns, then the same arrays."""
    header, token_ids, logprobs = parts
    body = msgpack.unpackb(header, use_list=False, raw=False)["body"]
    return _group(body, token_ids, logprobs)


def _decode_format_2(parts: Sequence[bytes]) -> Group:
    header, token_ids, logprobs = parts
    return _group(json.loads(header), token_ids, logprobs)


def _group(header: Mapping[str, Any], token_ids: bytes, logprobs: bytes) -> Group:
    lengths = header["lengths"]
    columns = zip(
        parted(np.frombuffer(token_ids, "<i4"), lengths),
        parted(np.frombuffer(logprobs, "<f4"), lengths),
        header["segments"],
        header["finish_reasons"],
        header["texts"],
        strict=True,
    )
    responses = tuple(
        Response(ids, values, tuple(VersionSegment(*pair) for pair in pairs), reason, text)
        for ids, values, pairs, reason, text in columns
    )
    rewards, reasons = tuple(map(float, header["rewards"])), tuple(header["reasons"])
    return Group(header["position"], header["attempt"], responses, rewards, reasons)


_DECODERS: Mapping[int, Callable[[Sequence[bytes]], Group]] = {1: _decode_format_1, 2: _decode_format_2}
