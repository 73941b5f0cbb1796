"""How many responses an engine is given at once."""
