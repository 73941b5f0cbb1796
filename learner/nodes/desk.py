"""Node 0's side of its talk with the launchers of other machines."""

import asyncio
import logging
import time

from dcpo_async.errors import TrainerError
from dcpo_async.limits import quoted
from dcpo_async.protocol.messages import Message, Reject
from dcpo_async.protocol.trainer_messages import NodeBeat, NodeHello, NodeWelcome
from learner.nodes.place import NodePlace
from learner.nodes.roster import Roster

log = logging.getLogger("learner")

WAIT_SECONDS = 3600.0
"""A machine that is not there is waited for so long."""
REPORT_SECONDS = 30.0
POLL_SECONDS = 0.2
END_SECONDS = 10.0
START_SECONDS = 600.0
"""A machine that is started along with node 0 has said hello by then: it reads its copy of the model before."""


class NodeDesk:
    """Lets machines take part that are as node 0 is, and starts all ranks once all are there.

    Args:
        place: of node 0.
        config: resolved settings of the run, as JSON.
        model: digest of the model.
        versions: of the libraries that ranks must have in common.
    """

    def __init__(self, place: NodePlace, config: str, model: str, versions: tuple[str, ...]) -> None:
        self._place, self._config, self._model, self._versions = place, config, model, versions
        self._roster = Roster(place.num_nodes)
        self._heard_end: set[int] = set()
        self._told: dict[int, str] = {}

    def answer(self, name: str, message: Message) -> Message | None:
        """What a machine's launcher hears; None for a message that is not one of a launcher's.

        Args:
            name: of its key.
            message: what it has said.
        """
        if isinstance(message, NodeHello):
            if problem := self._problem(message):
                self._tell_once(message.node, f"node {message.node} ({name}) is refused: {problem}")
                return Reject(reason="invalid", detail=problem)
            self._roster.join(message, name, time.monotonic())
            self._tell_once(message.node, f"node {message.node} ({name}) is there, in session {message.session[:8]}")
            return NodeWelcome(config=self._config)
        if isinstance(message, NodeBeat):
            if self._roster.hear(message, time.monotonic()):
                if self._roster.over:
                    self._heard_end.add(message.node)
                return self._roster.order()
            if self._roster.is_known(message.node):
                return Reject(reason="invalid", detail=f"another machine is node {message.node} by now")
            return Reject(reason="rejoin", detail=f"node {message.node} has not said hello to this start")
        return None

    async def all_there(self) -> None:
        """Wait until every machine is there, and none has ranks of a round before.

        Raises:
            TrainerError: not within WAIT_SECONDS.
        """
        self._roster.end_round()
        began = report_at = time.monotonic()
        while missing := self._roster.missing(now := time.monotonic()):
            if now - began > WAIT_SECONDS:
                raise TrainerError(f"the ranks were not started for {WAIT_SECONDS:.0f} s: {missing}")
            if now >= report_at and now - began > POLL_SECONDS:
                log.info("the ranks are started once all machines are there: %s", missing)
                report_at = now + REPORT_SECONDS
            await asyncio.sleep(POLL_SECONDS)

    def begin_round(self) -> int:
        """All ranks are started from now on; returns the number of this round of starts."""
        return self._roster.begin_round(time.monotonic())

    def lost(self) -> str:
        """Why ranks cannot go on; empty where nothing is known against it."""
        return self._roster.lost(time.monotonic())

    async def end(self, reason: str) -> None:
        """Tell all machines that no further round will follow, once their ranks have ended, or after END_SECONDS.

        Each hears it as the answer to a beat, which is waited for as long once more: what a launcher has not read when
        its connection goes is lost.
        """
        ends_at = time.monotonic() + END_SECONDS
        while not self._roster.is_over_for_all() and time.monotonic() < ends_at:  # noqa: ASYNC110 - beats end it
            await asyncio.sleep(POLL_SECONDS)
        self._roster.end_round()
        self._roster.over = reason
        ends_at = time.monotonic() + END_SECONDS
        while self._heard_end < self._roster.known() and time.monotonic() < ends_at:  # noqa: ASYNC110 - beats end it
            await asyncio.sleep(POLL_SECONDS)

    async def tell_all(self, reason: str) -> None:
        """Tell every machine that no round follows, those included that are still to come, for START_SECONDS at most.

        For a start that finds nothing to do: without it the others would wait for node 0 as for one that is away.
        """
        self._roster.over = reason
        began = report_at = time.monotonic()
        while missing := self._roster.numbers() - self._heard_end:
            now = time.monotonic()
            names = "node " + ", ".join(map(str, sorted(missing)))
            if now - began > START_SECONDS:
                log.warning("%s did not come within %.0f s to hear it", names, START_SECONDS)
                return
            if now >= report_at and now - began > POLL_SECONDS:
                log.info("waiting until the other machines have heard it: %s; a signal ends this", names)
                report_at = now + REPORT_SECONDS
            await asyncio.sleep(POLL_SECONDS)

    def _problem(self, hello: NodeHello) -> str:
        own = self._place
        if not 0 < hello.node < own.num_nodes or hello.num_nodes != own.num_nodes:
            return f"it is node {hello.node} of {hello.num_nodes}, and node 0 is one of {own.num_nodes}"
        if hello.num_local != own.num_local:
            return f"it has {hello.num_local} ranks and node 0 has {own.num_local}; give each machine as many"
        if hello.model != self._model:
            return "its copy of the model is another one; --model.path names the folder on each machine"
        there, here = set(hello.versions), set(self._versions)
        if there != here:
            return f"it has {', '.join(sorted(there - here))} and node 0 has {', '.join(sorted(here - there))}"
        return ""

    def _tell_once(self, node: int, words: str) -> None:
        if self._told.get(node) != words:
            self._told[node] = words
            log.info("%s", quoted(words, 1000))
