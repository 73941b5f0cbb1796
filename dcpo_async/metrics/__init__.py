"""The numbers of a run, step by step: written, read, drawn."""
