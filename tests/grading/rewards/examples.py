"""Rewards of users, as they come: good ones, slow ones, and ones that are wrong."""

import asyncio
import os
from typing import Any

import numpy as np

from dcpo_async.grading import Verdict


def by_length(response: str, num_tokens: int) -> float:
    return min(1.0, num_tokens / 7)


def everything(
    problem: str, answer: str, response: str, finish_reason: str, num_tokens: int, metadata: dict[str, Any]
) -> Verdict:
    is_as_expected = (problem, answer, finish_reason, num_tokens) == ("1+1=", "2", "stop", 3)
    return Verdict(is_as_expected, response, f"level {metadata['level']}", 0.5)


async def awaited(response: str) -> np.float32:
    await asyncio.sleep(0.001)
    return np.float32(0.25)


def what_it_says(response: str) -> object:
    """Anything that a reward may do, by the word that the response is."""
    match response:
        case "raises":
            raise ValueError("two\nlines")
        case "exits":
            raise SystemExit(3)
        case "dies":
            os._exit(3)
        case "hangs":
            while True:
                pass
        case "none":
            return None
        case "verdict":
            return Verdict(True, "2", "equal")
    return float(response)


def needs_more(response: str, weather: str) -> float:
    return 0.0


NOT_CALLABLE = 3
