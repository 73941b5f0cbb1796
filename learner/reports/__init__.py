"""What people look at: `dcpo show` and `dcpo stats`, from a copy of the ledger."""
