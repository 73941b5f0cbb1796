"""Evaluations that a run orders from its own actors: which problems, by whom, under which version, and what came of it."""
