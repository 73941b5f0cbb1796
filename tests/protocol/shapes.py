"""What each message between actors and learner holds, as it is recorded: `python -m tests.protocol.shapes`."""

import hashlib
import json
from pathlib import Path
from typing import Any

from dcpo_async.protocol import messages, weight_messages
from dcpo_async.protocol.codec import MESSAGE_TYPES
from dcpo_async.protocol.messages import PROTOCOL_VERSION, Message

Shapes = dict[str, dict[str, str]]


def shapes() -> Shapes:
    """For each kind its words, each with a digest of its type, its bounds and its default; and its arrays, in order.

    What ranks, publisher and machines of a learner say to each other is left out: they are of one release.
    """
    kinds = {
        kind.kind: kind
        for module in (messages, weight_messages)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Message) and kind is not Message
    }
    assert kinds.keys() <= MESSAGE_TYPES.keys()
    found: Shapes = {}
    for kind, message_type in kinds.items():
        schema = message_type.model_json_schema()
        words = {
            name: _digest(_plain(of_word, schema.get("$defs", {})), name in schema.get("required", ()), of_word)
            for name, of_word in schema.get("properties", {}).items()
        }
        arrays = " ".join(f"{name}:{dtype}" for name, dtype in message_type.array_dtypes.items())
        found[kind] = {**words, "[arrays]": arrays}
    return found


def recorded(version: int) -> Shapes:
    """Those of a version."""
    found: Shapes = json.loads(_place(version).read_text())
    return found


def _place(version: int) -> Path:
    return Path(__file__).with_name(f"shapes_{version}.json")


def _plain(schema: Any, definitions: dict[str, Any]) -> Any:
    """A schema without the words that explain it, and with what it refers to in its place."""
    if isinstance(schema, list):
        return [_plain(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _plain(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    explaining = {"title", "description", "default", "examples"}
    parts = {name: part for name, part in schema.items() if name not in {*explaining, "properties"}}
    found = {name: _plain(part, definitions) for name, part in parts.items()}
    # Names of settings, whichever they are, explain nothing.
    found |= {f".{name}": _plain(part, definitions) for name, part in schema.get("properties", {}).items()}
    return found


def _digest(schema: Any, is_required: bool, of_word: dict[str, Any]) -> str:
    words = json.dumps([schema, is_required, of_word.get("default")], sort_keys=True)
    return hashlib.blake2b(words.encode(), digest_size=4).hexdigest()


if __name__ == "__main__":
    _place(PROTOCOL_VERSION).write_text(json.dumps(shapes(), indent=1, sort_keys=True) + "\n")
