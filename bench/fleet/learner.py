"""A real coordinator over sockets and a ledger on disk, with a rank that trains in no time: a process of its own."""

import asyncio
import sys
from pathlib import Path

from dcpo_async.config import RunConfig
from dcpo_async.protocol.messages import Envelope, Message
from dcpo_async.protocol.trainer_messages import (
    Published,
    ShardMessage,
    ShardWant,
    StepDone,
    TrainerHello,
    VersionGrant,
    VersionWant,
)
from dcpo_async.records import Prompt
from dcpo_async.transport.zmq_channel import DealerChannel, RouterChannel
from learner.coordinator.coordinator import Coordinator
from learner.coordinator.intake import Intake
from learner.ledger.ledger import Ledger

VOCAB_SIZE = 1000
PROMPT_TOKENS = 64
GROUPS_PER_STEP = 64


def run_config(folder: Path, num_leases: int) -> RunConfig:
    """Settings whose admission window always has a place for the leases of all actors."""
    max_lag = 2 * num_leases // GROUPS_PER_STEP + 4
    return RunConfig(
        folder=folder,
        sampling={"group_size": 8, "max_response_tokens": 512},  # type: ignore[arg-type]
        training={"groups_per_step": GROUPS_PER_STEP},  # type: ignore[arg-type]
        model={"dtype": "float32"},  # type: ignore[arg-type]
        lag={"max_lag": max_lag},  # type: ignore[arg-type]
        actor={"regrade_share": 0.0},  # type: ignore[arg-type]
    )


class InstantRank:
    """Says all that trainer and publisher say, and trains nothing."""

    def __init__(self, address: str, run_id: str, incarnation: int, max_bytes: int) -> None:
        self._channel = DealerChannel(address, max_bytes)
        self._run_id, self._incarnation = run_id, incarnation

    async def run(self) -> None:
        """Publish, take a shard, be done, without end."""
        step = 0
        await self._say(TrainerHello(rank=0, num_ranks=1, step=0))
        while True:
            await self._say(VersionWant(step=step))
            grant = await self._hear(VersionGrant)
            await self._say(Published(weights_version=grant.weights_version, step=step))
            await self._say(ShardWant(rank=0, num_ranks=1, step=step))
            await self._hear(ShardMessage)
            step += 1
            await self._say(StepDone(step=step, metrics={"step_seconds": 1.0}))

    async def _say(self, message: Message) -> None:
        await self._channel.send(Envelope(message, {}, self._run_id, self._incarnation))

    async def _hear(self, kind: type[Message]) -> Message:
        while True:
            envelope = await self._channel.receive(60.0)
            if envelope is not None and isinstance(envelope.message, kind):
                return envelope.message


async def serve(folder: Path, num_leases: int) -> None:
    """Print the address once actors may come, and serve until this process is killed."""
    config = run_config(folder, num_leases)
    ledger = Ledger(folder / "ledger")
    number = config.admission_window * 2
    prompts = [Prompt(f"prompt-{i}", f"problem {i}", str(i), (1,) * PROMPT_TOKENS) for i in range(number)]
    intake = Intake(config, prompts, VOCAB_SIZE, ledger)
    limit = config.network.max_message_bytes
    actors, ranks_address = RouterChannel("tcp://127.0.0.1:0", limit), f"ipc://{folder}/ranks"
    ranks = RouterChannel(ranks_address, limit)
    coordinator = Coordinator(config, "run", intake, ledger, actors, ranks, weights_port=actors.port + 1)
    rank = InstantRank(ranks_address, "run", ledger.incarnation, limit)
    print(f"tcp://127.0.0.1:{actors.port}", flush=True)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(coordinator.run())
        tasks.create_task(rank.run())


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
