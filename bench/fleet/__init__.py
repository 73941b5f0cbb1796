"""Hundreds of simulated actors before one real coordinator: `python -m bench.fleet`."""
