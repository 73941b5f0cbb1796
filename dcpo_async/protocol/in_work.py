"""The leases that an actor works on, and the responses of each that have not ended. Pure."""

from collections.abc import Iterator

from dcpo_async.records import Group, Lease, LeaseName


def name_of(lease: Lease | Group) -> LeaseName:
    """The name of a lease, or of the one that a group answers."""
    return LeaseName(lease.position, lease.attempt)


class InWork:
    """Counts places by response: a group with one slow response holds one, however many it began with.

    Attributes:
        num_responses: in flight, over all groups.
    """

    def __init__(self) -> None:
        self._left: dict[LeaseName, int] = {}
        self._tokens: dict[LeaseName, int] = {}
        self.num_responses = 0

    def __len__(self) -> int:
        return len(self._left)

    def __contains__(self, name: LeaseName) -> bool:
        return name in self._left

    def __iter__(self) -> Iterator[LeaseName]:
        return iter(self._left)

    def begin(self, name: LeaseName, group_size: int) -> None:
        """A lease is worked on: all its responses are in flight."""
        self._left[name], self._tokens[name] = group_size, 0
        self.num_responses += group_size

    def response_ended(self, name: LeaseName, num_tokens: int) -> None:
        """One of its responses has ended, of so many tokens."""
        assert self._left[name] > 0
        self._left[name] -= 1
        self._tokens[name] += num_tokens
        self.num_responses -= 1

    def end(self, name: LeaseName) -> None:
        """A lease is answered or given back, whatever of it was still in flight."""
        self.num_responses -= self._left.pop(name)
        del self._tokens[name]

    def tokens(self, name: LeaseName) -> int:
        """Of the responses to a lease that have ended; 0 where it is not worked on."""
        return self._tokens.get(name, 0)

    def room(self, capacity: int, group_size: int, max_groups: int) -> int:
        """Leases that may be asked for.

        Args:
            capacity: responses that may be in flight at once.
            group_size: responses to a lease.
            max_groups: leases that may be worked on at once.

        With 64 places, groups of 16, and five groups open of which one response each still runs, there is room for
        three more.
        """
        places = max(0, capacity - self.num_responses)
        return max(0, min(places // group_size, max_groups - len(self._left)))
