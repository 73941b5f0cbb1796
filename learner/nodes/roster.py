"""Which machines are there, and which round of starts their ranks are to run; pure: time and messages come in.

A round is one start of all ranks of all machines, which stand and fall together. The machine of the coordinator,
node 0, begins and ends rounds; the others do what they are told.
"""

from dataclasses import dataclass

from dcpo_async.protocol.trainer_messages import NodeBeat, NodeHello, NodeOrder

SILENCE_SECONDS = 15.0
"""A machine that has said nothing for so long is lost."""


@dataclass(slots=True)
class Node:
    """What is known of one machine."""

    session: str
    name: str
    heard_at: float
    beat: NodeBeat | None = None


class Roster:
    """The machines beside node 0.

    Args:
        num_nodes: machines, node 0 included.

    Attributes:
        round_number: of the round that runs; 0 between rounds.
        over: why no other round will follow; empty while one may.
    """

    def __init__(self, num_nodes: int) -> None:
        self.round_number, self.over = 0, ""
        self._numbers = range(1, num_nodes)
        self._rounds = 0
        self._nodes: dict[int, Node] = {}
        self._taking_part: dict[int, str] = {}
        self._begun_at = 0.0

    def join(self, hello: NodeHello, name: str, now: float) -> None:
        """A machine's launcher is there, or there anew: its ranks of before are gone."""
        self._nodes[hello.node] = Node(hello.session, name, now)
        # Of the round that runs no more: were it to start ranks again, those of before would not know them.
        if self._taking_part.get(hello.node) == hello.session:
            self._taking_part[hello.node] = ""

    def numbers(self) -> set[int]:
        """All machines beside node 0, whether or not they have come."""
        return set(self._numbers)

    def known(self) -> set[int]:
        """Machines that have said hello."""
        return set(self._nodes)

    def is_known(self, node: int) -> bool:
        """Whether a machine of this number has said hello."""
        return node in self._nodes

    def hear(self, beat: NodeBeat, now: float) -> bool:
        """Take in what a machine does; False where it is not the one that said hello last, or none did."""
        node = self._nodes.get(beat.node)
        if node is None or node.session != beat.session:
            return False
        node.heard_at, node.beat = now, beat
        return True

    def order(self) -> NodeOrder:
        """What machines are to do."""
        return NodeOrder(round_number=self.round_number, over=self.over)

    def missing(self, now: float) -> str:
        """The machines without which no round can begin, for people; empty where all are there and idle."""
        return "; ".join(filter(None, (self._missing(number, now) for number in self._numbers)))

    def begin_round(self, now: float) -> int:
        """All ranks are started from now on; returns the number of the round."""
        self._rounds += 1
        self.round_number, self._begun_at = self._rounds, now
        self._taking_part = {number: node.session for number, node in self._nodes.items()}
        return self._rounds

    def end_round(self) -> None:
        """All ranks are to end."""
        self.round_number = 0

    def lost(self, now: float) -> str:
        """Why the round that runs cannot go on, for people; empty where nothing is known against it."""
        if not self.round_number:
            return ""
        return next(filter(None, (self._lost(number, now) for number in self._numbers)), "")

    def is_over_for_all(self) -> bool:
        """Whether no machine has ranks that run."""
        return all(node.beat is None or node.beat.state != "running" for node in self._nodes.values())

    def _missing(self, number: int, now: float) -> str:
        node = self._nodes.get(number)
        if node is None:
            return f"node {number} has not come yet"
        if now - node.heard_at > SILENCE_SECONDS:
            return f"node {number} ({node.name}) was heard of {now - node.heard_at:.0f} s ago"
        if node.beat is None or node.beat.state == "running":
            return f"node {number} ({node.name}) is not ready yet"
        return ""

    def _lost(self, number: int, now: float) -> str:
        node = self._nodes[number]
        taking_part = self._taking_part.get(number)
        if taking_part == "":
            return f"node {number} ({node.name}) has joined again, without its ranks of before"
        if node.session != taking_part:
            return f"node {number} ({node.name}) was started anew"
        if now - node.heard_at > SILENCE_SECONDS:
            return f"node {number} ({node.name}) says nothing for {now - node.heard_at:.0f} s"
        beat = node.beat
        if beat is None or beat.round_number != self.round_number:
            # It hears of the round within a second.
            is_late = now - self._begun_at > SILENCE_SECONDS
            return f"node {number} ({node.name}) does not start its ranks" if is_late else ""
        return f"node {number} ({node.name}): {beat.reason}" if beat.state == "failed" else ""
