"""The policy in training: samples packed into micro-batches, and what the model says of their tokens."""
