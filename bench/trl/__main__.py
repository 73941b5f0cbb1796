"""Both learners in turns, each step in a process of its own: `python -m bench.trl --trl-python PYTHON`."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.trl.samples import write_samples
from dcpo_async.devices import Devices
from tests.tiny_model import make_tiny_model

ROOT = Path(__file__).parents[2]
VOCAB_SIZE = 49_152


def main() -> None:
    """Print each figure as it comes, then medians and ratios of adjacent runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trl-python", required=True, help="a Python that has TRL")
    parser.add_argument("--model", type=Path, help="a model folder; a random Llama of 17 M parameters without one")
    parser.add_argument("--groups", type=int, default=8, help="of eight responses each")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 8], help="TRL's batch sizes")
    parser.add_argument("--checkpointing", type=int, nargs="+", default=[0, 1], help="TRL's gradient checkpointing")
    parser.add_argument("--settings", nargs="*", default=[], help="SECTION.NAME=VALUE of ours; the defaults without")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = options.model or random_llama(folder / "model")
        vocab_size = json.loads((model / "config.json").read_text())["vocab_size"]
        for utilization in (1.0, 0.7):
            path = folder / f"samples-{utilization}.json"
            counts = write_samples(path, vocab_size, num_groups=options.groups, utilization=utilization, seed=4)
        num_tokens, num_trained = counts
        omitted = 1 - num_trained / num_tokens
        print(f"{options.groups * 8} responses, {num_tokens} tokens; {omitted:.1%} without a gradient at RUR 0.7")
        ours = [sys.executable, "-m", "bench.trl.ours", str(model)]
        arms = {
            "ours": [*ours, str(folder / "samples-1.0.json"), *options.settings],
            "ours, RUR 0.7": [*ours, str(folder / "samples-0.7.json"), *options.settings],
        }
        for batch in options.batches:
            for checkpointing in options.checkpointing:
                script = str(ROOT / "bench" / "trl" / "theirs.py")
                arms[f"TRL, batch {batch}, checkpointing {checkpointing}"] = [
                    *[options.trl_python, script, str(model), str(folder / "samples-1.0.json")],
                    *[str(batch), str(checkpointing)],
                ]
        found: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
        for _ in range(options.rounds):
            for name, command in arms.items():
                found[name].append(run(command))
                print(name, json.dumps(found[name][-1]), flush=True)
    report(found, num_tokens)


def run(command: list[str]) -> dict[str, float]:
    """The measurement that a process prints last."""
    # Theirs gets what our ranks are given too, which may need less memory with it.
    ours = {**Devices((), 1).environment(), "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **ours, "TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command}: exit {done.returncode}\n{done.stderr[-3000:]}")
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"seconds"')]
    figures: dict[str, float] = json.loads(lines[-1])
    return figures


def report(found: dict[str, list[dict[str, float]]], num_tokens: int) -> None:
    """Medians, and TRL's best of each kind over ours, round by round."""
    for name, rounds in found.items():
        seconds = statistics.median(entry["cpu_seconds"] for entry in rounds)
        peak = statistics.median(entry["peak_mib"] for entry in rounds)
        print(f"{name}: {seconds:.1f} CPU s, {num_tokens / seconds:.0f} tokens/s, peak {peak:.0f} MiB")
    saved = [1 - few["cpu_seconds"] / all_["cpu_seconds"] for all_, few in zip(*list(found.values())[:2], strict=True)]
    print(f"time saved by omission: {statistics.median(saved):.1%} [{min(saved):.1%}, {max(saved):.1%}]")
    theirs = [name for name in found if name.startswith("TRL")]
    for name in ("ours", "ours, RUR 0.7"):
        for key, what in (("cpu_seconds", "TRL's fastest / ours, seconds"), ("peak_mib", "ours / TRL's leanest, MiB")):
            best = min(theirs, key=lambda other: statistics.median(entry[key] for entry in found[other]))
            ratios = [t[key] / o[key] for t, o in zip(found[best], found[name], strict=True)]
            shown = ratios if key == "cpu_seconds" else [1 / ratio for ratio in ratios]
            print(f"{name}: {what} ({best}): {statistics.median(shown):.2f} [{min(shown):.2f}, {max(shown):.2f}]")


def random_llama(folder: Path) -> Path:
    """256 wide, 6 layers, tied head, vocabulary of 49,152."""
    make_tiny_model(
        folder,
        seed=0,
        tied=True,
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
    )
    return folder


if __name__ == "__main__":
    main()
