"""Sums and products of two digits by Reasoning Gym, to train and to measure: `python -m bench.gym.sums FOLDER`.

train.jsonl and held_out.jsonl have no problem in common, and none twice.
"""

import argparse
import json
import random
from pathlib import Path

import reasoning_gym

DIGITS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
TASKS = ("chain_sum", "products")
DRAWN = 4_000
"""Problems of each task, among which all there are should be."""


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(prog="bench.gym.sums", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--held-out", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    datasets = [reasoning_gym.create_dataset(task, size=DRAWN, seed=options.seed, **DIGITS) for task in TASKS]
    answers = {entry["question"]: entry["answer"] for dataset in datasets for entry in dataset}
    rows = [json.dumps({"problem": problem, "answer": answer}) + "\n" for problem, answer in sorted(answers.items())]
    random.Random(options.seed).shuffle(rows)
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "held_out.jsonl").write_text("".join(rows[: options.held_out]))
    (options.folder / "train.jsonl").write_text("".join(rows[options.held_out :]))
    print(f"{len(rows)} problems, {options.held_out} of them in held_out.jsonl")


if __name__ == "__main__":
    main()
