"""From the trainer's model to versions that actors can fetch."""
