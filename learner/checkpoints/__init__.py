"""The trainer's state on disk: copied at a step, written beside the training, whole or not there at all."""
