"""`dcpo`: everything that is not a service."""
