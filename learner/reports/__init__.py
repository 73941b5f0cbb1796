"""What people look at: `dcpo show`, `dcpo stats` and `dcpo release`, from a copy of the ledger."""
