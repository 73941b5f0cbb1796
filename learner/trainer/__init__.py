"""One trainer rank: DeepSpeed's engine, the training loop."""
