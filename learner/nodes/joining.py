"""How a launcher becomes one of several machines: what is compared, how another than node 0 takes part, how all end."""

import asyncio
import logging
import signal
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dcpo_async.config import RunConfig
from dcpo_async.devices import Devices
from dcpo_async.errors import ConfigError
from dcpo_async.processes import private_folder
from dcpo_async.transport.interfaces import Router
from dcpo_async.transport.key_files import load_peer_keys
from dcpo_async.transport.zmq_channel import DealerChannel
from learner.initial_model import model_identity
from learner.nodes.desk import NodeDesk
from learner.nodes.follower import Follower
from learner.nodes.place import NodePlace

log = logging.getLogger("learner")

COMPARED = ("dcpo-async", "torch", "deepspeed", "transformers")
"""Libraries of which all machines have the same versions."""
FINISHED = "the run was finished before"
LISTEN_SECONDS = 1.0


def versions() -> tuple[str, ...]:
    """What this machine has of them."""
    return tuple(f"{name} {version(name)}" for name in COMPARED)


async def follow(config: RunConfig, devices: Devices, place: NodePlace, keys: Path) -> None:
    """Take part in the run of node 0 until it is over, or a signal comes.

    Args:
        config: whose folder and model are those of this machine.
        devices: of its ranks.
        place: of this machine.
        keys: the file of its keys, of the role rank.

    Raises:
        ConfigError: the keys are for another role, or node 0 refuses this machine.
        TrainerError: node 0 is away for too long.
    """
    own = load_peer_keys(keys)
    if own.role != "rank":
        raise ConfigError(f"{keys} is for the role {own.role}; `dcpo keygen KEYS --rank NAME` makes keys for machines")
    stopping = _stopped_by_signals(config.checkpoint.stop_seconds)
    model = model_identity(Path(config.model.path))
    channel = DealerChannel(place.coordinator, config.network.max_message_bytes, own)
    try:
        with private_folder("learner") as scratch:
            await Follower(place, channel, config, devices, model, versions(), keys, scratch, stopping).run()
    finally:
        channel.close()


async def tell_finished(nodes: NodeDesk, ranks: Router) -> bool:
    """Stay until the other machines of a run that was finished before have heard so; False where a signal ends it.

    Args:
        nodes: the desk that they talk to.
        ranks: what brings their words there; ranks of before that still ask get no answer.
    """
    stopping, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)

    async def listen() -> None:
        while True:
            await ranks.receive(LISTEN_SECONDS)

    parts: list[asyncio.Task[Any]] = [
        asyncio.create_task(listen()),
        asyncio.create_task(nodes.tell_all(FINISHED)),
        asyncio.create_task(stopping.wait()),
    ]
    try:
        done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        for part in done:
            part.result()
    finally:
        for part in parts:
            part.cancel()
        await asyncio.gather(*parts, return_exceptions=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    return not stopping.is_set()


def _stopped_by_signals(stop_seconds: float) -> asyncio.Event:
    """Set by a signal, but not at once: schedulers stop all machines together, and ranks write a last checkpoint."""
    stopping, loop, signals = asyncio.Event(), asyncio.get_running_loop(), list[signal.Signals]()

    def leave(number: signal.Signals) -> None:
        signals.append(number)
        if len(signals) > 1 or stop_seconds == 0:
            stopping.set()
            return
        log.info(
            "stopping: node 0 may stop too, with a checkpoint, for which this machine stays for %g s at most; a second "
            "signal ends it at once",
            stop_seconds,
        )
        loop.call_later(stop_seconds, stopping.set)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave, number)
    return stopping
