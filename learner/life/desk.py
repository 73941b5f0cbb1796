"""The learner's side of what commands ask of it while it is at work: files in its folder, each answered by another."""

import asyncio
import json
import logging
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from dcpo_async.config import RunConfig
from dcpo_async.durable import write_json
from dcpo_async.errors import DcpoError, LedgerError
from dcpo_async.limits import quoted
from dcpo_async.run_folder import REQUESTS
from learner.coordinator.coordinator import Coordinator
from learner.coordinator.intake import Intake
from learner.life.asking import ANSWER, REQUEST, TAKEN
from learner.life.live_settings import LiveSettings
from learner.scheduling.leases import SlotState

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
MAX_REQUEST_BYTES = 1 << 16
Answer = dict[str, Any]


def life_desk(config: RunConfig, coordinator: Coordinator, intake: Intake, stop: Callable[[bool], int]) -> "LifeDesk":
    """The desk of a learner that is about to work, with what was set before it in force again."""
    ranks = coordinator.ranks
    live = LiveSettings(config, coordinator.ledger, lambda: ranks.next_free_step, coordinator.actors.use)
    ranks.settings_of = live.of_step
    coordinator.status.marks, coordinator.status.settings_set = live.marks, live.standing
    return LifeDesk(config.folder / REQUESTS, coordinator, intake, live, stop)


class LifeDesk:
    """Takes requests in turn: to set something, to drain actors, to stop.

    Who may write into the folder of a run may ask: it and its files are its user's alone.

    Args:
        folder: of requests; those of before are removed unanswered, so that nothing is done twice.
        coordinator, intake: of the run.
        live: what is set while it goes on.
        stop: ends the learner, and its actors where the argument says so; returns how many steps no checkpoint has.
    """

    def __init__(
        self,
        folder: Path,
        coordinator: Coordinator,
        intake: Intake,
        live: LiveSettings,
        stop: Callable[[bool], int],
    ) -> None:
        self._folder, self._live, self._stop = folder, live, stop
        self._actors, self._intake, self._ranks = coordinator.actors, intake, coordinator.ranks
        self._incarnation, self._has_asked_to_stop, self._why_all = coordinator.ledger.incarnation, False, ""
        self._draining = dict[bytes, tuple[int, ...]]()
        self._dismissed, self._lost = set[bytes](), set[str]()
        self._handlers: Mapping[str, Callable[[Answer], Answer]] = {
            "set": self._set,
            "stop": self._stop_all,
            "drain": self._drain,
            "waits": self._waits,
        }
        folder.mkdir(mode=0o700, exist_ok=True)
        for suffix in (REQUEST, TAKEN, ANSWER):
            for path in folder.glob(f"*{suffix}"):
                path.unlink()

    async def run(self) -> None:
        """Look for requests until cancelled; a folder that cannot be read is told of once, and training goes on."""
        has_failed = False
        while True:
            try:
                self.look()
                has_failed = False
            except OSError as error:
                if not has_failed:
                    log.warning("%s cannot be read, commands are not heard: %s", self._folder, error)
                has_failed = True
            await asyncio.sleep(LOOK_SECONDS)

    def look(self) -> None:
        """Answer what lies there, and let those go that have drained."""
        for path in sorted(self._folder.glob(f"*{REQUEST}")):
            taken = path.with_suffix(TAKEN)
            try:
                path.rename(taken)
            except FileNotFoundError:
                # Whoever asked has given up.
                continue
            try:
                write_json(path.with_suffix(ANSWER), self._answer(taken))
            finally:
                # Without an answer, as on a full disk, whoever asked is told that there will be none.
                taken.unlink()
        self._dismiss_drained()

    def _answer(self, path: Path) -> Answer:
        try:
            request = _read(path)
            return {"taken": True, **self._handlers[request["kind"]](request["content"])}
        except LedgerError:
            # What could not be committed is not this request alone.
            raise
        except DcpoError as error:
            return {"taken": False, "says": str(error)}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            log.warning("the request %s is not understood: %s", quoted(path.name), quoted(str(error)))
            return {"taken": False, "says": f"the learner does not understand it ({error}); is it of another release?"}

    # ---- what is asked

    def _set(self, content: Answer) -> Answer:
        return {"says": self._live.change(content["settings"], content["at_step"])}

    def _stop_all(self, content: Answer) -> Answer:
        unsaved = self._stop(not content["keep_actors"])
        return {"unsaved": unsaved, "step": self._ranks.step, "incarnation": self._incarnation}

    def _drain(self, content: Answer) -> Answer:
        wanted, why = content["actor"], f"dcpo drain, asked by {quoted(content['by'])}"
        names = [name for name in self._names() if wanted in (None, quoted(name))]
        if wanted is not None and not names:
            there = ", ".join(sorted(map(quoted, self._names()))) or "none"
            return {"taken": False, "says": f"no actor {wanted} is connected; there are {there}"}
        if wanted is None:
            self._actors.rotation.is_closed, self._why_all = True, why
        self._let_go(names, why)
        return {"incarnation": self._incarnation, **self._waits(content)}

    def _names(self) -> list[bytes]:
        return [name for name, actor in self._actors.connected.items() if actor.role == "actor"]

    def _let_go(self, names: Iterable[bytes], why: str) -> None:
        for name in names:
            if name not in self._actors.rotation.drained:
                log.info("actor %s is drained (%s): %d leases are finished first", quoted(name), why, self._held(name))
                self._actors.rotation.drain(name, why)
                self._lost.discard(quoted(name))
                self._draining[name] = ()
                self._actors.untold.begin([name])
        self._note_lost()

    def _waits(self, content: Answer) -> Answer:
        """Leases that draining actors, or one of them, still work on, by actor; and whether that one was lost."""
        self._note_lost()
        drained = [name for name in sorted(self._actors.rotation.drained) if name not in self._dismissed]
        waits = {quoted(name): self._held(name) for name in drained}
        if (wanted := content["actor"]) is None:
            return {"waits": waits, "lost": False}
        return {"waits": {wanted: waits[wanted]} if wanted in waits else {}, "lost": wanted in self._lost}

    def _held(self, name: bytes) -> int:
        """Leases that an actor has: groups to train on, and problems of an evaluation."""
        return len(self._intake.table.held.get(name, {})) + self._actors.evaluations.num_held(name)

    def _note_lost(self) -> None:
        """Of actors that have gone, those were lost that held a lease of training which nobody has answered."""
        table = self._intake.table
        for name, positions in list(self._draining.items()):
            if name in self._actors.connected:
                self._draining[name] = tuple(table.held.get(name, {}))
                continue
            del self._draining[name]
            self._dismissed.discard(name)
            slots = filter(None, map(table.get, positions))
            if any(slot.state is not SlotState.ACCEPTED for slot in slots):
                self._lost.add(quoted(name))

    def _dismiss_drained(self) -> None:
        rotation, connected = self._actors.rotation, self._actors.connected
        if rotation.is_closed:
            self._let_go(self._names(), self._why_all)
        self._note_lost()
        free = [name for name in rotation.drained if not self._held(name)]
        if rotation.is_closed:
            if len(free) == len(self._names()) and not self._has_asked_to_stop:
                self._has_asked_to_stop = True
                log.info("all actors have answered what they held: the learner stops")
                self._stop(True)
            return
        # The others say bye by themselves.
        mute = [name for name in free if connected[name].activity != "draining" and name not in self._dismissed]
        if mute:
            self._actors.dismiss("it was drained: everything that it held is answered", mute)
            self._dismissed.update(mute)


def _read(path: Path) -> Answer:
    """A request; raises ValueError where it is not of this user alone."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor) as file:
        found = os.fstat(descriptor)
        if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o022:
            raise ValueError("others than the learner's user can write it")
        if found.st_size > MAX_REQUEST_BYTES:
            raise ValueError(f"{found.st_size} bytes")
        request: Answer = json.loads(file.read())
    return request
