"""What each rank of a trainer is told by its environment: who it is, and where it meets the others.

On one machine they meet in a file of a private folder: no socket is open to whoever comes, as torchrun's would be.
Those of several machines meet as `learner/nodes/` says.
"""

from collections.abc import Mapping
from pathlib import Path

from dcpo_async.config import TrainingSettings
from dcpo_async.devices import ON_LOOPBACK
from dcpo_async.errors import ConfigError

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


def require_sequence_parallel(shared_by: int, num: int, of_what: str) -> None:
    """Raise ConfigError where ranks cannot share tokens by so many.

    Args:
        shared_by: `training.sequence_parallel`.
        num: ranks, or attention heads.
        of_what: in words, such as `ranks`.
    """
    if num % shared_by:
        fitting = [str(number) for number in range(1, num + 1) if num % number == 0]
        listed = " or ".join(filter(None, (", ".join(fitting[:-1]), fitting[-1])))
        raise ConfigError(f"training.sequence_parallel = {shared_by} does not divide {num} {of_what}; take {listed}")


def zero_stage(training: TrainingSettings, num_ranks: int, *, on_gpus: bool, in_float32: bool) -> int:
    """The ZeRO stage of so many ranks, as `training.zero_stage` says.

    In bfloat16 a single process has use for it too: ZeRO adds up gradients, and keeps weights, in float32.
    """
    if training.zero_stage != "auto":
        return training.zero_stage
    # Whoever sets options of ZeRO wants it.
    is_without = num_ranks == 1 and in_float32 and not on_gpus and "zero_optimization" not in training.deepspeed
    return 0 if is_without else 2
