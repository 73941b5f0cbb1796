"""How long a step waits for a checkpoint, beside what it waited before."""
