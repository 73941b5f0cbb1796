"""`dcpo serve`: runs over HTTP, a page for people and metrics for Prometheus, from their folders alone."""
