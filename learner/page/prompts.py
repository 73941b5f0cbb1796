"""Prompts of a run and their visits, as JSON for the page."""

from itertools import islice
from typing import Any

from dcpo_async.errors import ConfigError
from learner.ledger.watching.overview import (
    ORDERS,
    Order,
    PromptSummary,
    prompt_page,
    quarantined_page,
    sampled_rewards,
)
from learner.ledger.watching.window import Sight
from learner.page.runs import ServedRun
from learner.reports.inspection import Selection, shown_groups
from learner.reports.pass_rates import PASS_RATES, pass_rate_shares
from learner.reports.show import read_config, readable

PAGE_PROMPTS, PAGE_VISITS = 50, 6
MAX_CHARS = 4000
"""A longer text loses its middle; the whole is a link away."""
NUM_WINDOWS, NUM_SAMPLES = 40, 4000
MAX_SEARCH = 200


def prompts_json(run: ServedRun, search: str, order: str, page: int) -> dict[str, Any]:
    """A page of prompts.

    Args:
        search: what an id begins with, or a problem contains.
        order: one of ORDERS, or `quarantined` for those alone.
        page: from 0.

    Raises:
        ConfigError: no such order or page.
    """
    if page < 0 or len(search) > MAX_SEARCH:
        raise ConfigError(f"pages begin with 0, and a search has at most {MAX_SEARCH} characters")
    if order == "quarantined":
        rows, total = run.window.read(lambda sight: quarantined_page(sight, page * PAGE_PROMPTS, PAGE_PROMPTS))
    elif order in ORDERS:
        chosen: Order = order
        rows, total = run.window.read(
            lambda sight: prompt_page(sight, search, chosen, page * PAGE_PROMPTS, PAGE_PROMPTS)
        )
    else:
        raise ConfigError(f"order {order!r}: choose one of {', '.join(ORDERS)}, quarantined")
    low, high = _range(run)
    return {
        "total": total,
        "page": page,
        "page_size": PAGE_PROMPTS,
        "rows": [_row(row, low, high) for row in rows],
    }


def pass_rates_json(run: ServedRun) -> dict[str, Any]:
    """How the pass rates of groups went over the run: shares by bin for stretches of it, of groups evenly spread."""
    found = run.window.read(lambda sight: sampled_rewards(sight, NUM_SAMPLES))
    low, high = _range(run)
    rates = [(reward - low) / (high - low) for _, reward in found]
    return {
        "bins": [name for name, _ in PASS_RATES],
        "shares": pass_rate_shares(rates, NUM_WINDOWS) if rates else [],
        "groups": len(rates),
        "last_position": found[-1][0] if found else None,
    }


def prompt_json(run: ServedRun, prompt_id: str, page: int) -> dict[str, Any]:
    """One prompt with its newest visits, and on further pages with older ones; ConfigError where there is none."""
    config = read_config(run.folder.config)

    def look(sight: Sight) -> dict[str, Any]:
        visits = sight.reader.visits(prompt_id=prompt_id)
        if not visits:
            raise ConfigError(f"prompt {prompt_id[:80]!r}: no prompt that was visited has this id")
        # Those of this page and of the newer ones before it, oldest first: each is read when it is asked for.
        count = min(len(visits), (page + 1) * PAGE_VISITS)
        newest = shown_groups(sight.reader, config, Selection(prompt=prompt_id, count=count))
        groups = list(islice(newest, max(0, count - page * PAGE_VISITS)))[::-1]
        rewards = sight.reader.rewards_until(prompt_id, visits[-1].visit)
        problem, answer = sight.reader.prompt_text(prompt_id) or (None, None)
        low, high = _range(run)
        return {
            "prompt_id": prompt_id,
            "problem": problem,
            "reference": answer,
            "num_visits": len(visits),
            "page": page,
            "page_size": PAGE_VISITS,
            "quarantine": groups[0].quarantine if groups else None,
            "pass_rates": [(sum(row) / len(row) - low) / (high - low) for row in rewards],
            "visits": [_cut(group.as_json()) for group in groups],
        }

    return run.window.read(look)


def response_text(run: ServedRun, position: int, index: int) -> str:
    """The whole text of one response; ConfigError where there is none, ReleasedError where it is deleted."""

    def look(sight: Sight) -> str:
        if sight.reader.read_scores(position) is None:
            raise ConfigError(f"position {position}: no group was counted there")
        responses = sight.reader.read_group(position).group.responses
        if not 0 <= index < len(responses):
            raise ConfigError(f"response {index}: the group has {len(responses)}, from 0")
        return responses[index].text

    return run.window.read(look)


def _cut(group: dict[str, Any]) -> dict[str, Any]:
    """A group whose texts are of a bounded length."""
    for response in group["responses"]:
        text = response["text"] or ""
        response["is_cut"] = len(text) > MAX_CHARS
        for name, chars in (("text", MAX_CHARS), ("answer", 200), ("reason", 200)):
            if response[name] is not None:
                response[name] = readable(str(response[name]), chars)
    return group


def _row(row: PromptSummary, low: float, high: float) -> dict[str, Any]:
    return {
        "prompt_id": row.prompt_id,
        "problem": readable(row.problem, 240),
        "reference": readable(row.answer, 80),
        "visits": row.stats.visits,
        "count": row.stats.count,
        "mean": row.stats.mean if row.stats.count else None,
        "pass_rates": [(reward - low) / (high - low) for reward in row.rewards],
        "quarantine": readable(row.quarantine, 400),
    }


def _range(run: ServedRun) -> tuple[float, float]:
    """Lowest and highest reward."""
    low, high = run.settings().get("grading.reward_range") or (0.0, 1.0)
    return float(low), float(high)
