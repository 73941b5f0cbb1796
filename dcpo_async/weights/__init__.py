"""Weights on their way from the learner to the engines: manifests, full snapshots and sparse patches."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dcpo_async.weights.patch import apply_patch, encode_patch

__all__ = ["apply_patch", "encode_patch"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from dcpo_async.weights import patch

        return getattr(patch, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
