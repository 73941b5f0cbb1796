"""A ledger watched from another process: opened read-only where it stands, and what pages show of it."""
