"""How a launcher becomes one of several machines: what they compare, and how another machine than node 0 takes part."""

import asyncio
import logging
import signal
from importlib.metadata import version
from pathlib import Path

from dcpo_async.config import RunConfig
from dcpo_async.devices import Devices
from dcpo_async.errors import ConfigError
from dcpo_async.processes import private_folder
from dcpo_async.transport.key_files import load_peer_keys
from dcpo_async.transport.zmq_channel import DealerChannel
from learner.initial_model import model_identity
from learner.nodes.follower import Follower
from learner.nodes.place import NodePlace

log = logging.getLogger("learner")

COMPARED = ("dcpo-async", "torch", "deepspeed", "transformers")
"""Libraries of which all machines have the same versions."""


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
