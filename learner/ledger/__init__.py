"""The ledger of a run: rows in SQLite, arrays in segment files; one writer, any number of readers."""
