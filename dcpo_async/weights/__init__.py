"""Weights on their way from the learner to the engines: manifests, full snapshots and sparse patches."""
