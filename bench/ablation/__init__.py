"""DCPO, its rivals and its parts on the demo's task: `python -m bench.ablation`."""
