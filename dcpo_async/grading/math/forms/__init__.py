"""The kinds of answers, and how those around the usual ones are read and compared."""
