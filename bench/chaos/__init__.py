"""Services that are killed again and again, and a recount by a reader of its own: `python -m bench.chaos`."""
