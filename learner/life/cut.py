"""The rows of a ledger up to an optimizer step, as a ledger of its own."""

import dataclasses
from collections.abc import Iterable, Iterator

from dcpo_async.algorithm import RewardStats
from dcpo_async.errors import LedgerError
from learner.ledger.reader import FIRST_SEGMENT, NEXT_POSITION, LedgerReader, newest_record
from learner.ledger.rows import Row, Rows, Table
from learner.ledger.schema import (
    BEGAN_IN_MILLIONTHS,
    EVALUATION_RESULTS,
    EVALUATIONS,
    GROUPS,
    META,
    OLD_LOGPROBS,
    PROMPT_STATS,
    PROMPTS,
    QUARANTINES,
    STARTS,
    STEPS,
    VERSIONS,
    VISITS,
)
from learner.life.events import PREFIX, Event, as_text, event_key, events, now

ORIGINS = ("restored", "forked")
_SAID_ANEW = ("run_id", "finished_step", "incarnation", "generated_tokens", NEXT_POSITION, FIRST_SEGMENT)
"""Words about a run that are another's after a cut, or are of a later moment."""


@dataclasses.dataclass(frozen=True, slots=True)
class Cut:
    """What a ledger is cut to.

    Attributes:
        step: optimizer steps that the state has behind it, the end of a batch or of the run.
        run_id: of what goes on from there.
        generated_tokens: until then; None where that is not known.
    """

    step: int
    run_id: str
    generated_tokens: int | None


def write_cut(source: LedgerReader, rows: Rows, cut: Cut) -> None:
    """Write what a ledger held when its trainer had taken so many steps into tables that are new.

    Batches until then are whole, with the rewards, advantages and statistics of their groups. A group that was counted
    and had not trained is not in it: its visit is leased again, as are those that were being answered; what comes after
    the last position that has trained was never leased. A prompt's visits are counted one after the other, so that no
    group stays without those of the prompt before it. Arrays stay where they are.

    Args:
        source: all of it was checked.
        rows: of a ledger that has no rows yet.

    Raises:
        LedgerError: statistics of the run cannot be counted again, since its first rewards were rounded otherwise.
    """
    if source.meta(BEGAN_IN_MILLIONTHS) is not None:
        raise LedgerError(
            f"{source.folder}: its first rewards were counted in millionths, so that statistics of an earlier step "
            "cannot be counted again; begin a run from an exported version instead"
        )
    updates = int(source.meta("updates_per_batch") or 1)
    end = cut.step + -cut.step % updates
    trained = {position for step, _, position in _each(source, STEPS) if step < end}
    last = max(trained, default=-1)
    visits = [_as_then(visit, trained) for visit in _each(source, VISITS) if visit[0] <= last]
    counted = {visit[0]: visit[1] for visit in visits if visit[-1] in ("accepted", "too_old", "discarded")}
    _write(rows, PROMPTS, _each(source, PROMPTS))
    _write(rows, VISITS, visits)
    _write(rows, GROUPS, (row for row in _each(source, GROUPS) if row[0] in counted))
    _write(rows, STEPS, (row for row in _each(source, STEPS) if row[0] < end))
    _write(rows, OLD_LOGPROBS, (row for row in _each(source, OLD_LOGPROBS) if row[0] in trained))
    _write(rows, QUARANTINES, (row for row in _each(source, QUARANTINES) if row[0] <= last))
    _write(rows, PROMPT_STATS, _statistics(source, counted))
    versions = [row for row in _each(source, VERSIONS) if row[1] <= cut.step]
    _write(rows, VERSIONS, versions)
    begun = max((incarnation for _, _, incarnation in versions), default=0)
    _write(rows, STARTS, (row for row in _each(source, STARTS) if row[0] <= begun))
    measured = [row for row in _each(source, EVALUATIONS) if row[2] <= cut.step and row[5] == "complete"]
    numbers = {row[0] for row in measured}
    _write(rows, EVALUATIONS, measured)
    _write(rows, EVALUATION_RESULTS, (row for row in _each(source, EVALUATION_RESULTS) if row[0] in numbers))
    _write(rows, META, _words(source, cut, begun, last + 1))


def _words(source: LedgerReader, cut: Cut, begun: int, next_position: int) -> Iterator[Row]:
    for key, value in _each(source, META):
        if key not in _SAID_ANEW and not key.startswith(PREFIX):
            yield key, value
    yield "run_id", cut.run_id
    yield "incarnation", str(begun)
    yield FIRST_SEGMENT, str(newest_record(source)[0] + 1)
    if source.meta(NEXT_POSITION) is not None:
        yield NEXT_POSITION, str(next_position)
    if cut.generated_tokens is not None:
        yield "generated_tokens", str(cut.generated_tokens)
    kept = [event for event in events(source) if event.step < cut.step or _is_origin(event, cut.step)]
    forked = Event(cut.step, now(), "forked", {"run_id": source.meta("run_id")})
    for number, event in enumerate([*kept, forked], start=1):
        yield event_key(number), as_text(event)


def _is_origin(event: Event, step: int) -> bool:
    return event.kind in ORIGINS and event.step == step


def _as_then(visit: Row, trained: set[int]) -> Row:
    """A visit before anything was made of its group that is not in a step."""
    position, *middle, state = visit
    return visit if position in trained or state != "accepted" else (position, *middle, "leased")


def _statistics(source: LedgerReader, counted: dict[int, str]) -> Iterator[Row]:
    stats = dict[str, RewardStats]()
    for position, *_, rewards, _, _ in _each(source, GROUPS):
        if position in counted:
            before = stats.setdefault(counted[position], RewardStats())
            stats[counted[position]] = before.with_rewards(map(float, rewards.split()))
    for prompt_id, found in stats.items():
        yield prompt_id, found.visits, found.count, found.sum_nano, str(found.sum_sq_nano)


def _each(source: LedgerReader, table: Table) -> Iterator[Row]:
    for row in source._rows.each(f"SELECT * FROM {table.name}"):
        yield source._rows.checked(table, row)


def _write(rows: Rows, table: Table, found: Iterable[Row]) -> None:
    for row in found:
        rows.add(table, *row)
