"""A real coordinator over sockets and a ledger on disk: a process of its own."""

import asyncio
import sys
from pathlib import Path

from dcpo_async.config import RunConfig
from dcpo_async.durable import write_json
from dcpo_async.records import Prompt
from dcpo_async.transport.interfaces import Received
from dcpo_async.transport.zmq_channel import RouterChannel
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


class CountingRouter(RouterChannel):
    """Counts what it hands over.

    Attributes:
        num_received: messages, forged ones among them.
    """

    num_received = 0

    async def receive(self, timeout_seconds: float) -> list[Received]:
        received = await super().receive(timeout_seconds)
        self.num_received += len(received)
        return received


async def tell_received(router: CountingRouter, file: Path) -> None:
    """Keep the number in a file, until cancelled."""
    while True:
        write_json(file, {"received": router.num_received})
        await asyncio.sleep(0.5)


async def serve(folder: Path, num_leases: int) -> None:
    """Print the addresses of actors and of the rank, and the number of this start; serve until killed."""
    config = run_config(folder, num_leases)
    ledger = Ledger(folder / "ledger")
    number = config.admission_window * 2
    prompts = [Prompt(f"prompt-{i}", f"problem {i}", str(i), (1,) * PROMPT_TOKENS) for i in range(number)]
    intake = Intake(config, prompts, VOCAB_SIZE, ledger)
    limit = config.network.max_message_bytes
    actors, ranks_address = CountingRouter("tcp://127.0.0.1:0", limit), f"ipc://{folder}/ranks"
    ranks = RouterChannel(ranks_address, limit)
    coordinator = Coordinator(config, "run", intake, ledger, actors, ranks, weights_port=actors.port + 1)
    print(f"tcp://127.0.0.1:{actors.port} {ranks_address} {ledger.incarnation}", flush=True)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(coordinator.run())
        tasks.create_task(tell_received(actors, folder / "received.json"))


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
