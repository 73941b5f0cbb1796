"""The reward of a Reasoning Gym problem: its task's own `score_answer`, partial credit included."""

import json
import re
from functools import lru_cache
from typing import Any

import reasoning_gym

from dcpo_async.grading.extraction import extract_answer
from dcpo_async.grading.verdict import Verdict

REWARD_PACKAGES = ("reasoning-gym",)
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def score(response: str, metadata: dict[str, Any]) -> Verdict:
    """The task's score of the answer in a response; 0 where there is no answer. Raises whatever the scorer raises.

    Args:
        metadata: `task`, `settings` and `entry` of the problem, as `gym_problems` gives them.
    """
    answer = answer_in(response)
    if answer is None:
        return Verdict(False, None, "no_answer", 0.0)
    task = _task(metadata["task"], json.dumps(metadata["settings"], sort_keys=True))
    reward = float(task.score_answer(answer, metadata["entry"]))
    return Verdict(reward == 1.0, answer, "full" if reward == 1.0 else "partial" if reward > 0 else "least", reward)


def answer_in(response: str) -> str | None:
    r"""What stands in the last <answer> tags, else in the last box: `answer_in("<answer> 4 </answer>")` is "4"."""
    text = response.rpartition("</think>")[2]
    tagged = _TAGGED.findall(text)
    return str(tagged[-1]).strip() if tagged else extract_answer(text, "boxed")


@lru_cache(maxsize=64)
def _task(name: str, settings: str) -> Any:
    """The scorers of some tasks look at the task's settings."""
    return reasoning_gym.create_dataset(name, size=1, seed=0, **json.loads(settings))
