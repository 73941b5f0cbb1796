"""How long a ledger takes to open, checked whole, and what its digests cost each group."""
