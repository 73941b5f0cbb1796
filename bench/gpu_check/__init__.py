"""What only a GPU can show, G1 to G8: `make gpu-check`, or `python -m bench.gpu_check --device cpu` as a dry run."""
