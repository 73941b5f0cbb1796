"""Evaluations that a run orders from its own actors: who answers what, and what came of it."""
