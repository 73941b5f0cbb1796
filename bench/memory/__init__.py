"""What a rank takes of memory, estimated and measured: `python -m bench.memory`."""
