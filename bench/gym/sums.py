"""Sums of two numbers by Reasoning Gym: `python -m bench.gym.sums FOLDER` writes train.jsonl and held_out.jsonl.

No problem stands in both, and none twice.
"""

import argparse
import json
from pathlib import Path

import reasoning_gym

TASK, SETTINGS = "chain_sum", {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(prog="bench.gym.sums", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=800)
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    size = 2 * (options.train + options.held_out)
    entries = reasoning_gym.create_dataset(TASK, size=size, seed=options.seed, **SETTINGS)
    answers = {entry["question"]: entry["answer"] for entry in entries}
    rows = [json.dumps({"problem": problem, "answer": answer}) + "\n" for problem, answer in answers.items()]
    if len(rows) < options.train + options.held_out:
        parser.error(f"{len(rows)} different problems were generated, {options.train + options.held_out} are wanted")
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "train.jsonl").write_text("".join(rows[: options.train]))
    end = options.train + options.held_out
    (options.folder / "held_out.jsonl").write_text("".join(rows[options.train : end]))


if __name__ == "__main__":
    main()
