"""`python -m bench.ledger`: seconds that a start spends on a ledger of many groups, and those that each group takes."""

import argparse
import os
import random
import tempfile
import time
from pathlib import Path

from dcpo_async.algorithm import RewardStats
from dcpo_async.records import Prompt
from learner.ledger.ledger import Ledger
from learner.ledger.reader import StoredGroup

GROUP_SIZE = 16
GROUPS_PER_COMMIT = 16
GROUPS_PER_STEP = 64
PARTS = (b"{}", b"", b"")
"""Arrays lie in segments, which are checked as they are read: here they would only take disk."""


def fill(folder: Path, num_groups: int, num_prompts: int) -> float:
    """Write a ledger as a learner does, without arrays; returns groups a second."""
    dice, ledger = random.Random(0), Ledger(folder)
    ledger.write_prompts(Prompt(f"{n:032x}", "a problem of some words " * 8, str(n), (1,)) for n in range(num_prompts))
    stats, began = dict[str, RewardStats](), time.monotonic()
    for position in range(num_groups):
        prompt_id = f"{position % num_prompts:032x}"
        ledger.write_lease(position, prompt_id, visit=1 + position // num_prompts, attempt=1, weights_step=0)
        rewards = tuple(float(dice.random() < 0.4) for _ in range(GROUP_SIZE))
        advantages = tuple(dice.gauss(0, 1) for _ in rewards)
        stats[prompt_id] = stats.get(prompt_id, RewardStats()).with_rewards(rewards)
        ledger.accept(StoredGroup(position, PARTS, rewards, advantages), prompt_id, stats[prompt_id], weights_step=0)
        ledger.set_meta("generated_tokens", str(position))
        if position % GROUPS_PER_STEP == GROUPS_PER_STEP - 1:
            step = position // GROUPS_PER_STEP
            ledger.write_batch(step, range(step * GROUPS_PER_STEP, position + 1), GROUPS_PER_STEP)
            ledger.grant_version(step)
        if position % GROUPS_PER_COMMIT == GROUPS_PER_COMMIT - 1:
            ledger.commit()
    ledger.close()
    return num_groups / (time.monotonic() - began)


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(prog="bench.ledger", description=__doc__)
    parser.add_argument("--groups", type=int, nargs="+", default=[10_000, 100_000])
    options = parser.parse_args()
    for num_groups in options.groups:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "ledger"
            rate = fill(folder, num_groups, num_prompts=num_groups // 10)
            began, used = time.monotonic(), time.process_time()
            ledger = Ledger(folder)
            seconds, used = time.monotonic() - began, time.process_time() - used
            size = (folder / "ledger.sqlite").stat().st_size
            ledger.close()
            print(
                f"{num_groups} groups, {size / 1e6:.0f} MB: written at {rate:.0f} groups/s, {GROUPS_PER_COMMIT} to a "
                f"commit; opened in {seconds:.1f} s ({used:.1f} s of processor time; load {os.getloadavg()[0]:.1f})"
            )


if __name__ == "__main__":
    main()
