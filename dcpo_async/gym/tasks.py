"""Tasks of Reasoning Gym 0.1.25 that one should not train on; `python -m bench.gym` tries them all."""

REFUSED: dict[str, str] = {}
"""Why, by task."""
