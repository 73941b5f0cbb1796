"""What may be leased, what trains next: decisions without a clock, a socket or a file."""
