"""What is shown of a ledger without reading all of it: pages of prompts, their newest visits, rates by samples."""

from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from dcpo_async.algorithm import RewardStats
from learner.ledger.reader import LAST_CHARACTER, quarantined
from learner.ledger.rows import Row
from learner.ledger.schema import GROUPS, PROMPT_STATS, VERSIONS, VISITS
from learner.ledger.watching.window import Sight

Order = Literal["hardest", "easiest", "visits"]
ORDERS: dict[Order, str] = {
    "hardest": "1.0 * s.sum_nano / s.count, s.visits DESC, s.prompt_id",
    "easiest": "-1.0 * s.sum_nano / s.count, s.visits DESC, s.prompt_id",
    "visits": "s.visits DESC, s.prompt_id",
}
NEWEST_VISITS = 40


@dataclass(frozen=True, slots=True)
class PromptSummary:
    """A prompt in a list.

    Attributes:
        stats: of all its rewards.
        rewards: mean reward of each of its newest counted visits, oldest first.
        quarantine: why it is not leased any more; "" where it is.
    """

    prompt_id: str
    problem: str
    answer: str
    stats: RewardStats
    rewards: tuple[float, ...]
    quarantine: str = ""


def prompt_page(sight: Sight, search: str, order: Order, offset: int, count: int) -> tuple[list[PromptSummary], int]:
    """Counted prompts from a place of the order on, at most `count`, and how many there are in all.

    Args:
        search: what an id begins with, or a problem contains, of any case; "" takes all.
    """
    ids = [row[0] for row in sight.rows.query("SELECT prompt_id FROM quarantines WHERE NOT is_released")]
    reasons = {row.prompt_id: row.reason for row in quarantined(sight.reader)} if ids else {}
    condition, values = _matching(search)
    ((total,),) = sight.rows.query(f"SELECT COUNT(*) FROM prompt_stats s {condition}", values)
    query = f"SELECT s.* FROM prompt_stats s {condition} ORDER BY {ORDERS[order]} LIMIT ? OFFSET ?"
    found = [sight.rows.checked(PROMPT_STATS, row) for row in sight.rows.query(query, (*values, count, offset))]
    return [_summary(sight, row[0], reasons.get(row[0], "")) for row in found], int(total)


def quarantined_page(sight: Sight, offset: int, count: int) -> tuple[list[PromptSummary], int]:
    """Prompts that are quarantined, the newest first; they may have no rewards at all."""
    rows = quarantined(sight.reader)[::-1]
    return [_summary(sight, row.prompt_id, row.reason) for row in rows[offset : offset + count]], len(rows)


def _matching(search: str) -> tuple[str, tuple[str, ...]]:
    if not search:
        return "", ()
    text = "".join(f"\\{char}" if char in "\\%_" else char for char in search)
    condition = (
        "WHERE (s.prompt_id >= ? AND s.prompt_id < ?) OR s.prompt_id IN "
        "(SELECT prompt_id FROM prompts WHERE problem LIKE ? ESCAPE '\\')"
    )
    return condition, (search, search + LAST_CHARACTER, f"%{text}%")


def _summary(sight: Sight, prompt_id: str, reason: str) -> PromptSummary:
    problem, answer = sight.reader.prompt_text(prompt_id) or ("", "")
    stats, rewards = sight.reader.reward_stats(prompt_id), newest_rewards(sight, prompt_id)
    return PromptSummary(prompt_id, problem, answer, stats, tuple(map(fmean, rewards)), reason)


def newest_rewards(sight: Sight, prompt_id: str, count: int = NEWEST_VISITS) -> list[tuple[float, ...]]:
    """Rewards of the newest counted visits of a prompt, oldest first."""
    rows = sight.rows.query(
        "SELECT v.*, g.* FROM visits v JOIN groups g ON g.position = v.position "
        "WHERE v.prompt_id = ? ORDER BY v.visit DESC LIMIT ?",
        (prompt_id, count),
    )
    for row in rows:
        sight.rows.checked(VISITS, row[: VISITS.width])
    return [_rewards(sight.rows.checked(GROUPS, row[VISITS.width :])) for row in reversed(rows)]


def sampled_rewards(sight: Sight, count: int) -> list[tuple[int, float]]:
    """Position and mean reward of counted groups, evenly spread over the run: all where there are few."""
    ((newest,),) = sight.rows.query("SELECT MAX(position) FROM groups")
    if newest is None:
        return []
    every = max(1, (newest + 1) // count)
    places = range(newest % every, newest + 1, every)
    found: list[Row] = []
    for start in range(0, len(places), 500):
        some = places[start : start + 500]
        marks = ", ".join("?" * len(some))
        found += sight.rows.find(GROUPS, f"WHERE position IN ({marks}) ORDER BY position", some)
    return [(row[0], fmean(_rewards(row))) for row in found]


def first_steps(sight: Sight) -> dict[int, int]:
    """The optimizer step that each start of the learner went on from, by its number."""
    rows = sight.rows.query(
        "SELECT v.* FROM versions v JOIN (SELECT MIN(weights_version) AS first FROM versions GROUP BY incarnation) "
        "ON v.weights_version = first"
    )
    return {incarnation: step for _, step, incarnation in (sight.rows.checked(VERSIONS, row) for row in rows)}


def _rewards(row: Row) -> tuple[float, ...]:
    """Of a row of groups."""
    return tuple(map(float, row[5].split()))
