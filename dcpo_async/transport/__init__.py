"""Envelopes over sockets, or in memory: what carries the protocol."""
