"""Versions of the weights, fetched once for each machine."""
