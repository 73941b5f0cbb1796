"""Which relay each machine asks for weights: a tree under the origin. Pure: no clock, no socket, no file."""

from collections.abc import Hashable

CHILDREN = 2
"""Machines that ask one relay, and machines that ask the origin while there are relays enough."""
TAKEN_OUT_SECONDS = 300.0
MAX_TAKEN_OUT_SECONDS = 3600.0


class RelayTree:
    """Machines with a relay, in the order of joining, as a binary heap; the others are leaves in its free places.

    Place i is under place i // 2 − 1, places 0 and 1 under the origin. A machine that leaves is replaced by the last
    one, so that no more than four others get a new parent. Members that name the same relay are one machine; a member
    without one is a machine of its own. Leaves beyond the free places ask the origin.

    Example: of 16 machines with relays two ask the origin, and the last one is at depth 4.
    """

    def __init__(self) -> None:
        self._machine_of: dict[Hashable, Hashable] = {}
        self._relays: list[str] = []
        self._leaves: dict[Hashable, None] = {}
        self._taken_out: dict[str, float] = {}
        self._times_taken_out: dict[str, int] = {}
        self._places: dict[Hashable, int] = {}

    def join(self, member: Hashable, relay: str) -> None:
        """A member is there, or names another relay than before.

        Args:
            member: an engine process.
            relay: address at which its machine serves what it has; empty for none.
        """
        machine = relay or (member,)
        if self._machine_of.get(member) == machine:
            return
        self.leave(member)
        if machine not in self._machine_of.values():
            if relay:
                self._relays.append(relay)
            else:
                self._leaves[machine] = None
        self._machine_of[member] = machine
        self._number()

    def leave(self, member: Hashable) -> None:
        """A member is gone, and with the last one its machine; unknown ones are fine."""
        machine = self._machine_of.pop(member, None)
        if machine is None or machine in self._machine_of.values():
            return
        self._leaves.pop(machine, None)
        self._remove(machine)
        if isinstance(machine, str):
            # Joining anew is a new start.
            self._taken_out.pop(machine, None)
            self._times_taken_out.pop(machine, None)
        self._number()

    def take_out(self, relay: str, now: float) -> float:
        """Nobody is sent to this relay for a while; each time twice as long. Its machine is a leaf meanwhile.

        Args:
            now: seconds of any clock that only goes up, here and in `parent_of`.

        Returns for how many seconds; 0 where it is no parent, or no longer.
        """
        if relay not in self._relays:
            return 0.0
        times = self._times_taken_out.get(relay, 0)
        seconds = min(TAKEN_OUT_SECONDS * 2.0**times, MAX_TAKEN_OUT_SECONDS)
        self._times_taken_out[relay] = times + 1
        self._taken_out[relay] = now + seconds
        self._remove(relay)
        self._leaves[relay] = None
        self._number()
        return seconds

    def parent_of(self, member: Hashable, now: float) -> str:
        """The relay to ask; empty for the origin, as for members that have not joined."""
        self._take_back(now)
        place = self._places.get(self._machine_of.get(member))
        above = -1 if place is None else place // CHILDREN - 1
        return self._relays[above] if 0 <= above < len(self._relays) else ""

    def _take_back(self, now: float) -> None:
        if not self._taken_out:
            return
        over = [relay for relay, until in self._taken_out.items() if now >= until]
        for relay in over:
            del self._taken_out[relay], self._leaves[relay]
            self._relays.append(relay)
        if over:
            self._number()

    def _remove(self, machine: Hashable) -> None:
        """Put the last relay in this one's place."""
        if machine in self._relays:
            at, last = self._relays.index(str(machine)), self._relays.pop()
            if at < len(self._relays):
                self._relays[at] = last

    def _number(self) -> None:
        self._places = {machine: place for place, machine in enumerate([*self._relays, *self._leaves])}
