"""The store by which ranks find each other: a file of one machine, or one that the first rank opens to the network."""

from datetime import timedelta

from torch._C._distributed_c10d import FileStore, PrefixStore, Store, TCPStore


def met(place: str, rank: int, num_ranks: int, deadline: timedelta) -> Store:
    """The store at a meeting place, as `MEETING_PLACE` has it.

    Raises:
        RuntimeError: nobody has opened it within the deadline.
    """
    if not place.startswith("tcp://"):
        return FileStore(place, num_ranks)
    address, _, round_number = place.removeprefix("tcp://").partition("/")
    host, _, port = address.rpartition(":")
    store = TCPStore(host, int(port), None, is_master=rank == 0, timeout=deadline, wait_for_workers=False)
    # Ranks of a round that has ended may still come, and must not be taken for those of this one.
    return PrefixStore(f"round {round_number}", store)
