"""The comparison on chains: `python -m bench.ablation --task chains`."""
