"""Chooses groups of a ledger for people to read, and gathers what the run knows about each."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from dcpo_async.algorithm import RewardStats
from dcpo_async.config import RunConfig
from dcpo_async.errors import ConfigError, ReleasedError
from dcpo_async.grading import extract_answer
from dcpo_async.records import Group, Response
from learner.ledger.reader import LedgerReader, VisitRow, quarantined

Outcome = Literal["correct", "wrong", "mixed"]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which groups to show.

    Attributes:
        step: counted as in metrics.jsonl, where the first is 1.
        prompt: id of a prompt, or as much of its beginning as no other id shares.
        outcome: groups of which all, no, or only some responses are right.
        count: at most so many.
        seed: of the choice among the groups of a step.
    """

    position: int | None = None
    step: int | None = None
    prompt: str | None = None
    outcome: Outcome | None = None
    count: int = 3
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ShownResponse:
    """One response and what became of it.

    Attributes:
        is_correct: as the grader said; where its reason is gone, or was an own reward's, by the reward.
        response, reason: None once the arrays of its group are deleted.
        answer: what the run's extraction finds in the text; None where its sources have different ones.
    """

    reward: float
    advantage: float
    response: Response | None
    reason: str | None
    answer: str | None
    is_correct: bool

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        response = self.response
        return {
            "correct": self.is_correct,
            "reason": self.reason,
            "answer": self.answer,
            "reward": self.reward,
            "advantage": self.advantage,
            "num_tokens": None if response is None else len(response.token_ids),
            "finish_reason": None if response is None else response.finish_reason,
            "segments": None if response is None else [segment._asdict() for segment in response.segments],
            "text": None if response is None else response.text,
        }


@dataclass(frozen=True, slots=True)
class ShownGroup:
    """A visit of a prompt, with its group if it was answered.

    Attributes:
        problem, reference: None where the ledger does not say.
        stats: of all the prompt's rewards up to this visit.
        std: their standard deviation, as the run's advantages use it.
        lags: optimizer steps between the weights of each response's segments and the training step, smallest and
            largest; None where nothing was sampled, trained or kept.
        responses: empty until the group is counted.
        is_released: whether its arrays are deleted, so that only rewards and advantages are known.
        quarantine: why the prompt is not leased any more; None where it is.
    """

    visit: VisitRow
    problem: str | None
    reference: str | None
    stats: RewardStats
    std: float
    lags: tuple[int, int] | None
    responses: tuple[ShownResponse, ...]
    is_released: bool
    quarantine: str | None = None

    @property
    def step(self) -> int | None:
        """The step that trains it, as metrics.jsonl counts; None while it has none."""
        return None if self.visit.step is None else self.visit.step + 1

    @property
    def num_correct(self) -> int:
        """Right responses."""
        return sum(response.is_correct for response in self.responses)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        stats = self.stats
        return {
            "position": self.visit.position,
            "step": self.step,
            "state": self.visit.state,
            "attempt": self.visit.attempt,
            "prompt_id": self.visit.prompt_id,
            "visit": self.visit.visit,
            "problem": self.problem,
            "reference": self.reference,
            "prompt_stats": {"visits": stats.visits, "count": stats.count, "mean": stats.mean, "std": self.std},
            "lags": self.lags,
            "arrays_deleted": self.is_released,
            "quarantine": self.quarantine,
            "responses": [response.as_json() for response in self.responses],
        }


def shown_groups(reader: LedgerReader, config: RunConfig, selection: Selection) -> Iterator[ShownGroup]:
    """The groups of a selection in lease order, each read when it is asked for: all of a run may be large.

    Raises ConfigError where the selection names what is not there.
    """
    version_steps = reader.version_steps()
    for visit in chosen_visits(reader, selection, config):
        yield _shown(reader, config, version_steps, visit)


def chosen_visits(reader: LedgerReader, selection: Selection, config: RunConfig) -> list[VisitRow]:
    """The newest visits that match, sampled within a step; raises ConfigError where what is named is not there."""
    dice = random.Random(selection.seed)
    chosen: list[VisitRow] = []
    for visits in _newest_first(reader, selection):
        matching = [visit for visit in visits if selection.outcome in (None, _outcome(reader, visit, config))]
        chosen += dice.sample(matching, min(len(matching), selection.count - len(chosen)))
        if len(chosen) == selection.count:
            break
    return sorted(chosen, key=lambda visit: visit.position)


def _newest_first(reader: LedgerReader, selection: Selection) -> Iterator[list[VisitRow]]:
    """Visits to choose from; those of one list are equally new."""
    if selection.position is not None:
        yield [_visit_at(reader, selection.position)]
    elif selection.prompt is not None:
        prompt_id = _prompt_id(reader, selection.prompt)
        yield from ([visit] for visit in reversed(reader.visits(prompt_id=prompt_id)))
    elif selection.step is not None:
        yield _visits_of_step(reader, selection.step)
    else:
        yield from (_visits_of_step(reader, step) for step in range(reader.next_batch_step(), 0, -1))
        yield reader.visits("accepted", "too_old", "discarded", is_open=True)


def _visit_at(reader: LedgerReader, position: int) -> VisitRow:
    visit = reader.visit(position)
    if visit is None:
        raise ConfigError(
            f"position {position}: no lease was issued for it; the newest is {reader.next_position() - 1}"
        )
    return visit


def _prompt_id(reader: LedgerReader, prefix: str) -> str:
    found = reader.prompt_ids(prefix, limit=4)
    if not found:
        raise ConfigError(f"prompt {prefix}: no prompt that was visited has an id that begins so")
    if len(found) > 1 and prefix not in found:
        raise ConfigError(f"prompt {prefix}: several ids begin so ({', '.join(found)}); give more of it")
    return prefix if prefix in found else found[0]


def _visits_of_step(reader: LedgerReader, step: int) -> list[VisitRow]:
    visits = reader.visits(step=step - 1)
    if not visits:
        raise ConfigError(f"step {step}: no batch was made for it; the newest is step {reader.next_batch_step()}")
    return visits


def _outcome(reader: LedgerReader, visit: VisitRow, config: RunConfig) -> Outcome | None:
    scores = reader.read_scores(visit.position)
    if scores is None:
        return None
    num_correct = sum(_is_right(reward, None, config) for reward in scores[0])
    return "wrong" if num_correct == 0 else "correct" if num_correct == len(scores[0]) else "mixed"


def _is_right(reward: float, reason: str | None, config: RunConfig) -> bool:
    """Of an own reward, whether it is the highest that there is."""
    gradings = tuple(config.grading_by_source.values()) or (config.grading,)
    is_equal = reason in ("equal", "equivalent") and any(grading.reward is None for grading in gradings)
    if config.has_own_reward:
        return is_equal or reward >= config.grading.reward_range[1]
    return reward > 0 if reason is None else is_equal


def _shown(reader: LedgerReader, config: RunConfig, version_steps: dict[int, int], visit: VisitRow) -> ShownGroup:
    scores = reader.read_scores(visit.position)
    group = None if scores is None else _group(reader, visit.position)
    rewards, advantages = scores or ((), ())
    stats = RewardStats()
    for earlier in reader.rewards_until(visit.prompt_id, visit.visit):
        stats = stats.with_rewards(earlier)
    problem, reference = reader.prompt_text(visit.prompt_id) or (None, None)
    return ShownGroup(
        visit=visit,
        problem=problem,
        reference=reference,
        stats=stats,
        std=stats.std(config.algorithm.ddof),
        lags=_lags(group, visit.step, config.algorithm.updates_per_batch, version_steps),
        responses=tuple(
            _response(reward, advantages[index], group, index, config) for index, reward in enumerate(rewards)
        ),
        is_released=scores is not None and group is None,
        quarantine=next((row.reason for row in quarantined(reader) if row.prompt_id == visit.prompt_id), None),
    )


def _group(reader: LedgerReader, position: int) -> Group | None:
    try:
        return reader.read_group(position).group
    except ReleasedError:
        return None


def _response(reward: float, advantage: float, group: Group | None, index: int, config: RunConfig) -> ShownResponse:
    if group is None:
        return ShownResponse(reward, advantage, None, None, None, _is_right(reward, None, config))
    response, reason = group.responses[index], group.reasons[index]
    found = {grading.extraction for grading in config.grading_by_source.values() or (config.grading,)}
    answer = extract_answer(response.text, found.pop()) if len(found) == 1 else None
    return ShownResponse(reward, advantage, response, reason, answer, _is_right(reward, reason, config))


def _lags(
    group: Group | None, step: int | None, updates_per_batch: int, version_steps: dict[int, int]
) -> tuple[int, int] | None:
    """Smallest and largest lag, counted from the first step of the group's batch."""
    if group is None or step is None:
        return None
    first_step = step - step % updates_per_batch
    versions = {segment.weights_version for response in group.responses for segment in response.segments}
    lags = [first_step - version_steps[version] for version in versions]
    return (min(lags), max(lags)) if lags else None
