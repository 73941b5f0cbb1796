"""Weights on their way from the learner to the engines: manifests, full snapshots and sparse patches."""

from dcpo_async.weights.patch import apply_patch, encode_patch

__all__ = ["apply_patch", "encode_patch"]
