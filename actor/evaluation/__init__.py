"""`dcpo eval`: models, or the versions of a running learner, on problem sets."""
