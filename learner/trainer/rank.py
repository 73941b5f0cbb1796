"""The process of one trainer rank; the learner starts one for each GPU."""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from dcpo_async.config import RunConfig
from dcpo_async.config.live import changed_settings
from dcpo_async.durable import write_json
from dcpo_async.errors import DcpoError, TrainerError
from dcpo_async.limits import plain_log
from dcpo_async.run_folder import RunFolder
from dcpo_async.transport.key_files import load_peer_keys
from dcpo_async.transport.zmq_channel import DealerChannel
from learner.timing.step_clock import pair_cost
from learner.trainer.coordinator_link import RankLink
from learner.trainer.engine import TrainEngine
from learner.trainer.publication import Publication
from learner.trainer.trainer import Trainer
from learner.weights.model_folder import write_skeleton

log = logging.getLogger("learner.trainer")


def main() -> int:
    """Run one rank; returns its exit code."""
    options = _parser().parse_args()
    who = f"rank {os.environ['RANK']} " if os.environ["WORLD_SIZE"] != "1" else ""
    plain_log(who)
    config = RunConfig.model_validate_json(options.config.read_bytes())
    try:
        asyncio.run(run_rank(config, options))
    except Exception as error:
        exit_code = error.exit_code if isinstance(error, DcpoError) else 1
        log.error("%s: %s", type(error).__name__, error, exc_info=exit_code == 1)
        leave_error(RunFolder(config.folder), str(error) or type(error).__name__, exit_code)
        return exit_code
    return 0


async def run_rank(config: RunConfig, options: argparse.Namespace) -> None:
    """Build a rank, train to the end of the run, and let go of everything.

    Raises:
        TrainerError: a rank failed, or did not come to a collective in time.
    """
    rank, num_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    keys = load_peer_keys(options.keys) if options.keys else None
    channel = DealerChannel(options.coordinator, config.network.max_message_bytes, keys)
    link = RankLink(
        channel,
        options.coordinator,
        options.run_id,
        options.incarnation,
        name=f"rank {rank}",
        rank=rank,
        num_ranks=num_ranks,
        work_seconds=config.training.step_timeout_seconds,
        sequence_parallel=config.training.sequence_parallel,
    )
    try:
        engine, folder = TrainEngine(config), RunFolder(config.folder)
        link.pair_cost = pair_cost(engine.model)
        publication = Publication(engine, options.buffers, config.training.step_timeout_seconds)
        # Nothing is offered now, so that the publisher reads no skeleton.
        if rank == 0:
            write_skeleton(folder.skeleton, engine.model, engine.tokenizer, Path(config.model.path))
        trainer = Trainer(config, engine, link, publication)

        def use(settings: Mapping[str, float | None]) -> None:
            changed = changed_settings(config, settings)
            engine.settings = changed.training
            trainer.checkpoints.use(changed.checkpoint)

        link.on_settings = use
        await trainer.train()
        engine.close()
    except RuntimeError as error:
        # torch.distributed says RuntimeError to a peer that is gone and to a deadline that has passed.
        raise TrainerError(f"rank {rank} of {num_ranks}: {error}") from error
    finally:
        channel.close()


def leave_error(folder: RunFolder, message: str, exit_code: int) -> None:
    """Tell the launcher why this rank ends; of several ranks the first one counts, the others suffer from it."""
    if not folder.trainer_error.exists():
        write_json(folder.trainer_error, {"message": message.partition("\n")[0], "exit_code": exit_code})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="learner.trainer.rank", description="A trainer rank; dcpo-learner starts it.")
    parser.add_argument("--config", type=Path, required=True, help="resolved configuration, JSON")
    parser.add_argument("--coordinator", required=True, help="address of the coordinator")
    parser.add_argument("--run-id", required=True)
    parser.add_argument("--incarnation", type=int, required=True, help="start of the learner that this rank is of")
    parser.add_argument("--buffers", type=Path, nargs="*", default=[], help="shared publication buffers, on node 0")
    parser.add_argument("--keys", type=Path, help="keys of this machine, where the coordinator is on another")
    return parser


if __name__ == "__main__":
    sys.exit(main())
