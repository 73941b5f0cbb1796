"""The visits to come: the order of a run's prompts, without those that are quarantined or rest."""

from collections import Counter, deque
from collections.abc import Container, Sequence

from dcpo_async.config import DataSettings, RunConfig
from dcpo_async.prompts.order import PromptOrder
from dcpo_async.records import Prompt
from learner.ledger.ledger import Ledger, expect_meta
from learner.ledger.reader import NEXT_POSITION, LedgerReader, visited_since
from learner.scheduling.leases import LeaseTable, Slot
from learner.visits.mixture import MixedOrder, Order, SourcePart
from learner.visits.selection import History, Selection


class ComingVisits:
    """Opens visit after visit, inside the ledger's open transaction.

    A prompt that rests is passed over: its position stays empty, and that the order has come beyond it is written
    down, so that a resumed run takes the decision from the ledger. Among as many positions as there are prompts,
    `min_gap` at least are visited, whatever rests.

    Attributes:
        num_rested: positions that were passed over since this start.

    Raises:
        ConfigError: the prompts, or those of one source, are fewer than the admission window needs.
        LedgerError: the ledger was filled with other sources or weights.
    """

    def __init__(self, config: RunConfig, prompts: Sequence[Prompt], ledger: Ledger, table: LeaseTable) -> None:
        self._prompts, self._ledger, self._table = prompts, ledger, table
        # The window may change from start to start, the order of the prompts must not.
        min_gap = int(ledger.meta("min_gap") or config.admission_window)
        ledger.set_meta("min_gap", str(min_gap))
        expect_meta(ledger, "sources", _sources_text(config, prompts), "its prompt order depends on it")
        self._order = order_of(config, prompts, min_gap)
        self._selection = selection_of(config.data, config.grading.reward_range)
        self._histories: dict[int, History] = {}
        self._most_resting = len(prompts) - min_gap
        end = table.next_position
        first = max(0, end - len(prompts))
        self._rested = deque(sorted(set(range(first, end)) - visited_since(ledger, first)))
        self.num_rested = 0

    def open_next(self, quarantined: Container[int]) -> Slot | None:
        """Open the next visit that may go out; None while the next prompt's last visit is still open.

        Args:
            quarantined: indices of prompts that are not leased; not all of them.
        """
        has_rested = False
        while True:
            position = self._table.next_position
            index, visit = self._order.index(position), self._order.epoch(position) + 1
            if index in quarantined:
                self._ledger.write_quarantine(position, self._prompts[index].id, visit)
                self._table.skip_position()
            elif self._table.is_prompt_open(index):
                slot = None
                break
            elif self._rests(position, index, visit):
                self._table.skip_position()
                has_rested = True
            else:
                slot = self._table.open_new(index, visit)
                break
        if has_rested:
            self._ledger.set_meta(NEXT_POSITION, str(position))
        return slot

    def counted(self, index: int) -> None:
        """A group of a prompt was counted: what was known of it is old."""
        self._histories.pop(index, None)

    def _rests(self, position: int, index: int, visit: int) -> bool:
        if self._selection is None:
            return False
        while self._rested and self._rested[0] <= position - len(self._prompts):
            self._rested.popleft()
        if len(self._rested) >= self._most_resting:
            return False
        history = self._histories.get(index)
        if history is None:
            history = self._histories[index] = history_of(self._ledger, self._prompts[index].id)
        if not self._selection.rests(history, visit):
            return False
        self._rested.append(position)
        self.num_rested += 1
        return True


def order_of(config: RunConfig, prompts: Sequence[Prompt], min_gap: int) -> Order:
    """The order of a run's prompts: by the weights of their sources, where these have some.

    Raises ConfigError where the prompts, or those of one source, are too few.
    """
    sources = config.data.sources
    if not sources or sources[0].weight is None:
        return PromptOrder(len(prompts), config.seed, min_gap)
    counts = Counter(prompt.source for prompt in prompts)
    parts = [SourcePart(name, counts[name], source.weight or 0.0) for name, source in zip(counts, sources, strict=True)]
    return MixedOrder(parts, config.seed, min_gap)


def selection_of(data: DataSettings, reward_range: tuple[float, float]) -> Selection | None:
    """The policy of rests that the settings ask for, for rewards between these two."""
    if data.selection == "none":
        return None
    return Selection(
        data.selection_bound,
        data.selection_half_life_visits,
        data.selection_look_again_epochs,
        reward_range,
        is_of_solved=data.selection == "solved",
    )


def history_of(ledger: LedgerReader, prompt_id: str) -> History:
    """What a ledger has counted of a prompt."""
    visits = [row.visit for row in ledger.visits("accepted", "too_old", "discarded", prompt_id=prompt_id)]
    last_visit = max(visits, default=0)
    return History(tuple(ledger.rewards_until(prompt_id, last_visit)), last_visit)


def _sources_text(config: RunConfig, prompts: Sequence[Prompt]) -> str:
    """What the order depends on beside the prompts: the number of each weighted source's, and its weight."""
    sources = config.data.sources
    if not sources or sources[0].weight is None:
        return "by prompts"
    counts = Counter(prompt.source for prompt in prompts)
    return ", ".join(f"{count} at {source.weight!r}" for count, source in zip(counts.values(), sources, strict=True))
