"""Alert rules against a real Prometheus server: faults of a live run, and when each is told."""
