"""What each rank of a trainer is told by its environment: who it is, and where it meets the others.

On one machine they meet in a file of a private folder: no socket is open to whoever comes, as torchrun's would be.
Those of several machines meet as `learner/nodes/` says.
"""

from collections.abc import Mapping
from pathlib import Path

from dcpo_async.devices import ON_LOOPBACK

MEETING_PLACE = "DCPO_MEETING_PLACE"
"""Environment variable: the file by which ranks find each other, or tcp://HOST:PORT/ROUND."""


def rank_environments(num_ranks: int, folder: Path) -> list[Mapping[str, str]]:
    """Additions to the environment of each rank, by rank; called before each start, which gets a new meeting place.

    Args:
        folder: of this learner alone, which no other user may enter.
    """
    place = folder / "meeting"
    # A start before may have left half of its ranks' addresses in it.
    place.unlink(missing_ok=True)
    return [
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(num_ranks),
            "LOCAL_WORLD_SIZE": str(num_ranks),
            MEETING_PLACE: str(place),
            **ON_LOOPBACK,
        }
        for rank in range(num_ranks)
    ]
