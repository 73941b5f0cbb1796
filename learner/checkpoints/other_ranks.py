"""Goes on from a checkpoint that ranks of another number or ZeRO stage wrote, and proves that no bit got lost."""

import logging
from collections.abc import Callable
from typing import Any

from dcpo_async.errors import CheckpointError
from learner.checkpoints.folder import CheckpointLayout
from learner.checkpoints.reslicing import OptimizerPart, SlicedCheckpoint
from learner.checkpoints.slicing import Slicing

log = logging.getLogger(__name__)


def load_resliced(
    engine: Any,
    rank: int,
    layout: CheckpointLayout,
    written: SlicedCheckpoint,
    texts_of_ranks: Callable[[str], list[str]],
) -> None:
    """Load a rank's part of weights and moments; all ranks call it.

    Parameters that do not train are as the model's folder has them, to which a run is bound.

    Args:
        engine: of DeepSpeed, under ZeRO 1 to 3, its buffers loaded already.
        rank: who this is.
        layout: of the ranks that load.
        written: what the others wrote.
        texts_of_ranks: every rank's text.

    Raises:
        CheckpointError: the merged state is not the same before and after, or cannot be cut up for these ranks.
    """
    by_parameter, before, optimizer = layout.zero_stage == 3, written.layout, engine.optimizer
    own = Slicing.of(engine._get_zero_param_shapes(), layout.num_ranks, by_parameter=by_parameter)
    if by_parameter:
        optimizer.checkpoint_event_prologue()
    state = written.part(own, rank).into(optimizer.state_dict())
    optimizer.load_state_dict([state] * layout.num_ranks, load_from_fp32_weights=True)
    if by_parameter:
        optimizer.checkpoint_event_epilogue()
    else:
        optimizer.update_lp_params()
    engine.global_steps, engine.skipped_steps = written.model["global_steps"], written.model["skipped_steps"]
    digests = (
        written.digest(range(rank, before.num_ranks, layout.num_ranks)),
        OptimizerPart.of(optimizer.state_dict()).digest(own.stretches(rank)),
    )
    told = [map(int, text.split()) for text in texts_of_ranks("{} {}".format(*digests))]
    was, is_now = (f"{sum(numbers) % (1 << 64):016x}" for numbers in zip(*told, strict=True))
    if was != is_now:
        raise CheckpointError(
            f"the state of {written.path} is another one once {layout.num_ranks} ranks have loaded it ({was} before, "
            f"{is_now} after); start the learner with {before.num_ranks} ranks, as before"
        )
    if rank == 0:
        log.info(
            "a checkpoint of %d ranks under ZeRO %d goes on with %d under ZeRO %d; merged float32 state %s before and "
            "after",
            before.num_ranks,
            before.zero_stage,
            layout.num_ranks,
            layout.zero_stage,
            is_now,
        )
