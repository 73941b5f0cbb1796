"""One run on chains in one process: the learner's own decisions and losses, without services between them."""
