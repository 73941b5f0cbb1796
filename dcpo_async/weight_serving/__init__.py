"""Hands out the versions of a store, or of a machine's cache, which has the same layout."""
