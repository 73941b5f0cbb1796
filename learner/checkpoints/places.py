"""Where the checkpoints of several machines stand: in one folder that all see, or on disks of their own."""

import json
import secrets
from pathlib import Path
from typing import Protocol

from dcpo_async.errors import CheckpointError
from learner.checkpoints.folder import complete_steps


class LocatedRanks(Protocol):
    """What has to be known of ranks; all call each method, in the same order."""

    rank: int
    num_ranks: int
    local_rank: int
    num_local: int

    def texts_of_ranks(self, text: str) -> list[str]:
        """Every rank's text, by rank."""
        ...


def folder_of(folder: Path, ranks: LocatedRanks) -> tuple[bool, bool]:
    """Whether this rank sees to the folder of checkpoints, and whether all machines have one and the same.

    Rank 0 sees to a shared folder, and the first rank of each machine to one on a disk of its own.
    """
    if ranks.num_ranks == ranks.num_local:
        return ranks.rank == 0, True
    mark = folder / f".seen-{secrets.token_hex(8)}"
    if ranks.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    seen = (folder / ranks.texts_of_ranks(mark.name)[0]).exists()
    is_shared = all(json.loads(text) for text in ranks.texts_of_ranks(json.dumps(seen)))
    mark.unlink(missing_ok=True)
    return ranks.rank == 0 or (not is_shared and ranks.local_rank == 0), is_shared


def newest_step(folder: Path, ranks: LocatedRanks) -> int:
    """The newest step whose checkpoint stands whole on every machine; 0 for none.

    Raises:
        CheckpointError: there are checkpoints, and none of them on every machine.
    """
    own = complete_steps(folder)
    if ranks.num_ranks == ranks.num_local:
        return max(own, default=0)
    told: list[list[int]] = [json.loads(text) for text in ranks.texts_of_ranks(json.dumps(own))]
    common = set(told[0]).intersection(*told[1:])
    if not common and any(told):
        by_machine = "; ".join(f"{told[rank] or 'none'}" for rank in range(0, ranks.num_ranks, ranks.num_local))
        raise CheckpointError(
            f"no checkpoint stands on every machine; by machine there are those of steps {by_machine}: copy the "
            f"missing files into {folder}, or move all away to start from the model again"
        )
    return max(common, default=0)
