"""How a launcher becomes one of several machines: what they compare, and how another machine than node 0 takes part."""

import asyncio
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
    stopping, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    model = model_identity(Path(config.model.path))
    channel = DealerChannel(place.coordinator, config.network.max_message_bytes, own)
    try:
        with private_folder("learner") as scratch:
            await Follower(place, channel, config, devices, model, versions(), keys, scratch, stopping).run()
    finally:
        channel.close()
