"""Digests of texts, the same on every machine and in every process."""

import hashlib
from collections.abc import Iterable


def digest_of(texts: Iterable[str]) -> str:
    """16 hex digits (blake2b) which change with any text, their order and the bounds between them."""
    state = hashlib.blake2b(digest_size=8)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()
