"""Settings that are changed while a run goes on: each change is a row of the ledger, from a step on."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dcpo_async.config import RunConfig
from dcpo_async.config.live import OF_RANKS, Setting, changed_settings, checked_changes, require_reloadable, setting_of
from dcpo_async.errors import ConfigError
from learner.ledger.ledger import Ledger
from learner.ledger.reader import Start
from learner.life.events import Event, events, in_words, write_event

log = logging.getLogger(__name__)


def set_at(happened: Sequence[Event], step: int) -> dict[str, Setting]:
    """What has been set and holds for the update after `step` steps, by name; names that were never set are not there.

    Args:
        happened: all that was done to the run, oldest first. Of two changes for one step the later one holds.
    """
    changes = sorted((event for event in happened if event.kind == "set"), key=lambda event: event.step)
    found: dict[str, Setting] = {}
    for event in changes:
        if event.step <= step:
            found |= event.content["settings"]
    return found


def settle(ledger: Ledger, config: RunConfig, starts: Sequence[Start]) -> None:
    """At a start, before its commit: what was given anew to this start takes the place of what was set before it.

    A setting whose value differs from that of the start before was changed by whoever starts the run, and holds from
    the first step on that no batch is committed for; the others stay as they were set while the run went on.

    Args:
        starts: of the run, this one the last.
    """
    happened, step = events(ledger), ledger.next_batch_step()
    standing = set_at(happened, max([step, *(event.step for event in happened)]))
    if len(starts) < 2:
        return
    before, given = starts[-2].settings, starts[-1].settings
    anew = {name: setting_of(config, name) for name in standing if setting_in(before, name) != setting_in(given, name)}
    by = "a start with other settings"
    if anew:
        write_event(ledger, step, "set", settings=anew, by=by)
    # What was set for a later step would come into force there again.
    for event in (event for event in happened if event.kind == "set" and event.step > step):
        again = {name: anew[name] for name in event.content["settings"] if name in anew}
        if again:
            write_event(ledger, event.step, "set", settings=again, by=by)
    still = {name: value for name, value in standing.items() if name not in anew}
    if still:
        log.info("set while the run went on, and still so: %s", in_words(still))


def setting_in(settings: Mapping[str, Any], name: str) -> Any:
    """A setting by its dotted name, of those that a start has kept; None too where there was none."""
    section, _, leaf = name.partition(".")
    return settings.get(section, {}).get(leaf)


class LiveSettings:
    """What has been set while a run went on, as a learner at work applies it.

    Args:
        config: of this start.
        ledger: keeps each change; this process writes to it.
        next_free_step: the first step of which nothing is decided yet.
        use: lets the coordinator work by other settings.
    """

    def __init__(
        self,
        config: RunConfig,
        ledger: Ledger,
        next_free_step: Callable[[], int],
        use: Callable[[RunConfig], None],
    ) -> None:
        self._config, self._ledger, self._next_free_step, self._use = config, ledger, next_free_step, use
        self._events = [event for event in events(ledger) if event.kind == "set"]
        self._apply()

    def change(self, asked: Mapping[str, str], at_step: int | None = None) -> str:
        """Set some settings; durable, and told to the coordinator, when this returns a line about it.

        Args:
            asked: texts by dotted names.
            at_step: optimizer steps after which ranks take them over; None for as soon as they can.

        Raises:
            ConfigError: one may not change, a value cannot be, or the step has begun.
        """
        for name in asked:
            require_reloadable(name)
        free, updates = self._next_free_step(), self._config.algorithm.updates_per_batch
        step = free if at_step is None else at_step
        if at_step is not None and (others := sorted(asked.keys() - OF_RANKS)):
            raise ConfigError(f"{', '.join(others)}: the coordinator takes them over at once, --at-step is for others")
        if step < free or step % updates:
            which = f"step {free}" if updates == 1 else f"step {free}, and each is of {updates} steps"
            raise ConfigError(f"--at-step {step}: the next batch that can have it begins after {which}")
        latest = max([step, *(event.step for event in self._events)])
        settings = checked_changes(changed_settings(self._config, set_at(self._events, latest)), asked)
        event = write_event(self._ledger, step, "set", settings=settings, by="dcpo set")
        self._ledger.commit()
        self._events.append(event)
        self._apply()
        log.info("set from step %d on: %s", step + 1, in_words(settings))
        return f"{in_words(settings)}: from step {step + 1} on"

    def of_step(self, step: int) -> dict[str, Setting]:
        """What ranks are told with the batch of a step."""
        return {name: value for name, value in set_at(self._events, step).items() if name in OF_RANKS}

    def marks(self, step: int) -> dict[str, float]:
        """Metrics of a step that is done: what had been set when it was trained, where that is a number."""
        found = set_at(self._events, step - 1)
        return {f"set/{name}": float(value) for name, value in found.items() if value is not None}

    def standing(self) -> list[dict[str, Any]]:
        """For status.json: of each setting that was set, what holds, and what will; from which step on."""
        free = self._next_free_step()
        found: dict[str, list[dict[str, Any]]] = {}
        for event in sorted(self._events, key=lambda event: event.step):
            for name, value in event.content["settings"].items():
                before = found.setdefault(name, [])
                if event.step <= free:
                    before.clear()
                before.append({"name": name, "value": value, "from_step": event.step + 1})
        return [change for name in sorted(found) for change in found[name]]

    def _apply(self) -> None:
        latest = max((event.step for event in self._events), default=0)
        standing = {name: value for name, value in set_at(self._events, latest).items() if name not in OF_RANKS}
        if standing:
            self._use(changed_settings(self._config, standing))
