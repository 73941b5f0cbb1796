"""A run over HTTP, from its folder alone: metrics for Prometheus, health, status. Reads; never touches the training."""
