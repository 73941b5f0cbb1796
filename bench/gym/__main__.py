"""Tries every task of Reasoning Gym as a run would use it, and prints what it found as a table.

    python -m bench.gym              all tasks, some minutes
    python -m bench.gym chain_sum    some of them

Twice: under another hash seed a task may generate other problems. Each task has a process of its own.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import reasoning_gym
from reasoning_gym.factory import DATASETS

from dcpo_async.gym.tasks import REFUSED
from dcpo_async.prompts.digest import digest_of

NUM_ENTRIES = 12
SECONDS = 60
MARK = "result of bench.gym "
"""Some tasks print while they generate."""
NONSENSE = "qzxv nonsense"


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.gym", description=__doc__)
    parser.add_argument("tasks", nargs="*", help="of Reasoning Gym; none is all")
    parser.add_argument("--once", action="store_true", help="try each task in this start of Python, print JSON")
    options = parser.parse_args(argv)
    tasks = options.tasks or sorted(DATASETS)
    if options.once:
        for task in tasks:
            _in_a_process(task)
        return
    first, second = (_results(tasks, seed) for seed in ("0", "1"))
    print("| task | s | own answer | next one's answer | nonsense | after JSON | other hash seed | verdict |")
    print("|---|---|---|---|---|---|---|---|")
    for task in tasks:
        print(_row(task, first[task], second[task]), flush=True)


def _results(tasks: Sequence[str], hash_seed: str) -> dict[str, dict[str, Any]]:
    argv = [sys.executable, "-m", "bench.gym", "--once", *tasks]
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    found = (json.loads(line.partition(MARK)[2]) for line in done.stdout.splitlines() if MARK in line)
    by_task = {result["task"]: result for result in found}
    return {task: by_task.get(task, {"error": f"no result within {SECONDS} s"}) for task in tasks}


def _in_a_process(task: str) -> None:
    """A fork has imported the package already."""
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        try:
            result = tried(task)
        except Exception as error:  # whatever a task raises is the result
            result = {"error": _in_words(error)}
        print(f"\n{MARK}{json.dumps({'task': task, **result})}", flush=True)
        os._exit(0)
    os.waitpid(child, 0)


def tried(task: str) -> dict[str, Any]:
    """What a task gives its own answers, others' answers and nonsense; scores are means over NUM_ENTRIES problems."""
    began = time.perf_counter()
    entries = list(reasoning_gym.create_dataset(task, size=NUM_ENTRIES, seed=7))
    seconds = time.perf_counter() - began
    # As a worker scores: by another object, from what has travelled as JSON.
    scorer = reasoning_gym.create_dataset(task, size=1, seed=0)
    travelled = [json.loads(json.dumps(entry)) for entry in entries]
    answers = [str(entry["answer"]) for entry in entries]
    own = [_score(scorer, answer, entry) for answer, entry in zip(answers, travelled, strict=True)]
    before = [_score(scorer, answer, entry) for answer, entry in zip(answers, entries, strict=True)]
    nexts = [(answers[i - 1], entry) for i, entry in enumerate(travelled) if answers[i - 1] != answers[i]]
    others = [_score(scorer, answer, entry) for answer, entry in nexts]
    nonsense = [_score(scorer, NONSENSE, entry) for entry in travelled]
    return {
        "seconds": seconds,
        "digest": digest_of(str(entry["question"]) + str(entry["answer"]) for entry in entries),
        "own": own,
        "same_after_json": own == before,
        "others": others,
        "nonsense": nonsense,
    }


def verdict(result: dict[str, Any]) -> str:
    """Whether one should train on a task, and else why not."""
    if "error" in result:
        return f"does not work: {result['error']}"
    if any(score != 1.0 for score in result["own"]):
        worst = next(score for score in result["own"] if score != 1.0)
        what = f"gives its own answer {worst:g}" if isinstance(worst, float) else f"its own answer {worst}"
        return f"{what}, in {sum(score != 1.0 for score in result['own'])} of {len(result['own'])} problems"
    for name, what in (("nonsense", "nonsense"), ("others", "every other problem's answer")):
        if result[name] and all(score == 1.0 for score in result[name]):
            return f"gives {what} the full reward"
    if not result["same_after_json"]:
        return "scores otherwise once its metadata went through JSON"
    return "usable"


def _row(task: str, first: dict[str, Any], second: dict[str, Any]) -> str:
    if "error" in first:
        return f"| {task} | | | | | | | **{verdict(first)}** |"
    is_same = first["digest"] == second.get("digest")
    said = verdict(first)
    cells = [
        f"{first['seconds']:.2f}",
        *(_shown(first[name]) for name in ("own", "others", "nonsense")),
        "same" if first["same_after_json"] else "other",
        "same" if is_same else "other problems",
        said if said == "usable" and task not in REFUSED else f"**{REFUSED.get(task, said)}**",
    ]
    return f"| {task} | {' | '.join(cells)} |"


def _shown(scores: Sequence[float | str]) -> str:
    """Mean of the scores, and what was raised instead of others."""
    numbers = [score for score in scores if isinstance(score, float)]
    words = sorted({score for score in scores if isinstance(score, str)})
    mean = f"{sum(numbers) / len(numbers):.3g}" if numbers else "–"
    return ", ".join([mean, *words])


def _score(scorer: Any, answer: str, entry: dict[str, Any]) -> float | str:
    try:
        return float(scorer.score_answer(answer, entry))
    except Exception as error:  # whatever a scorer raises is the result
        return f"raises {type(error).__name__}"


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"


if __name__ == "__main__":
    main()
