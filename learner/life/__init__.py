"""The life of a run: what is done to one as a whole, while its learner is at work and after."""
