"""What the ledger knows of every prompt of a run, and how the pass rates of its groups went."""

from dataclasses import dataclass
from statistics import fmean

from dcpo_async.config import DataSettings
from dcpo_async.errors import ConfigError
from learner.ledger.reader import LedgerReader, visited_since
from learner.visits.coming import history_of, selection_of


@dataclass(frozen=True, slots=True)
class PromptRow:
    """What the ledger knows of one prompt.

    Attributes:
        visits, count, mean, std: of all rewards it has received; std with ddof 1.
        last_reward: mean reward of its last counted visit.
        last_step, last_version: of the oldest weights that sampled that visit.
        judgement: of `data.selection` by what has been counted: open, solved or hopeless; "" where nothing rests.
    """

    prompt_id: str
    problem: str
    answer: str
    visits: int
    count: int
    mean: float
    std: float
    last_reward: float
    last_step: int
    last_version: int
    judgement: str = ""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Prompts in order of their first visit, and the mean reward of every counted group in lease order.

    Attributes:
        reward_range: lowest and highest reward; a pass rate is where between them a mean lies, 0 to 1.
        num_rested: visits that were passed over because their prompts rested.
    """

    prompts: list[PromptRow]
    group_rewards: list[float]
    reward_range: tuple[float, float] = (0.0, 1.0)
    num_rested: int = 0


def read_statistics(reader: LedgerReader) -> Statistics:
    """All prompts that have been counted; raises ConfigError where none has."""
    version_of = {step: version for version, step in sorted(reader.version_steps().items())}
    last_visit, group_rewards = {}, []
    for row in reader.visits("accepted", "too_old", "discarded"):
        scores = reader.read_scores(row.position)
        assert scores is not None, f"position {row.position} was counted without a group"
        group_rewards.append(fmean(scores[0]))
        last_visit[row.prompt_id] = row, group_rewards[-1]
    if not last_visit:
        raise ConfigError(f"{reader.folder}: no group has been counted yet; wait for the first ones")
    data, reward_range = _newest_settings(reader)
    prompts, selection = [], selection_of(data, reward_range)
    for prompt_id, (row, reward) in last_visit.items():
        stats, text = reader.reward_stats(prompt_id), reader.prompt_text(prompt_id) or ("", "")
        prompts.append(
            PromptRow(
                prompt_id,
                *text,
                stats.visits,
                stats.count,
                stats.mean,
                stats.std(),
                reward,
                row.weights_step,
                version_of[row.weights_step],
                selection.judgement(history_of(reader, prompt_id)) if selection else "",
            )
        )
    num_rested = reader.next_position() - len(visited_since(reader, 0))
    return Statistics(prompts, group_rewards, reward_range, num_rested)


def _newest_settings(reader: LedgerReader) -> tuple[DataSettings, tuple[float, float]]:
    """Of the newest start that was written down: those of the selection, and lowest and highest reward."""
    starts = reader.starts()
    settings = starts[-1].settings if starts else {}
    given = {name: value for name, value in settings.get("data", {}).items() if name.startswith("selection")}
    # Runs of before own rewards knew 0 and 1 alone.
    low, high = settings.get("grading", {}).get("reward_range", (0.0, 1.0))
    return DataSettings.model_validate(given), (low, high)
