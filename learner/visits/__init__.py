"""The order in which prompts are visited: of one source or of several, and which of them rest."""
