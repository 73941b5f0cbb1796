"""Where a machine stands among several whose ranks train together, and what it tells its ranks of that."""

import fcntl
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dcpo_async.errors import ConfigError
from learner.ranks import MEETING_PLACE


@dataclass(frozen=True, slots=True)
class NodePlace:
    """Where one machine stands among those whose ranks train together, each with as many as the others.

    Attributes:
        node: 0 is the one with the coordinator, whose ranks come first.
        num_nodes: machines.
        num_local: ranks of each.
        rendezvous: HOST:PORT of node 0, at which ranks meet; on the next port the coordinator is reached.
    """

    node: int
    num_nodes: int
    num_local: int
    rendezvous: str

    def __post_init__(self) -> None:
        if not 0 <= self.node < self.num_nodes:
            raise ConfigError(f"--node-rank {self.node}: the machines are numbered from 0 to {self.num_nodes - 1}")
        host, colon, port = self.rendezvous.rpartition(":")
        if not host or not colon or not port.isdecimal() or not 0 < int(port) < 65535:
            raise ConfigError(f"--rendezvous {self.rendezvous}: write HOST:PORT, such as node0:29500")

    @classmethod
    def of(cls, num_nodes: int, node: int, num_local: int, rendezvous: str | None, keys: Path | None) -> "NodePlace":
        """From a command line; raises ConfigError where something is missing."""
        if num_nodes < 1:
            raise ConfigError(f"--nodes {num_nodes}: at least one machine has to train")
        if rendezvous is None or keys is None:
            missing = "--rendezvous HOST:PORT of node 0" if rendezvous is None else "--keys, which ranks always need"
            raise ConfigError(f"--nodes {num_nodes} needs {missing}")
        return cls(node, num_nodes, num_local, rendezvous)

    @property
    def num_ranks(self) -> int:
        """Ranks of all machines."""
        return self.num_nodes * self.num_local

    @property
    def host(self) -> str:
        """Of node 0."""
        return self.rendezvous.rpartition(":")[0]

    @property
    def coordinator(self) -> str:
        """Where launchers and ranks of other machines reach the coordinator."""
        return f"tcp://{self.host}:{int(self.rendezvous.rpartition(':')[2]) + 1}"

    def listening(self) -> str:
        """Where node 0 listens for launchers and ranks of other machines: sockets are not bound to names.

        Raises:
            ConfigError: this machine takes the name for its loopback, where no other machine comes.
        """
        try:
            address = socket.gethostbyname(self.host)
        except OSError as error:
            raise ConfigError(f"--rendezvous: {self.host} is not in reach ({error.strerror})") from None
        if address.startswith("127.") and address != self.host:
            raise ConfigError(
                f"--rendezvous: {self.host} is {address} on this machine (see /etc/hosts), where no other machine "
                "comes; name node 0 by the address of its network"
            )
        return self.coordinator.replace(self.host, address)

    def environments(self, round_number: int) -> list[Mapping[str, str]]:
        """Additions to the environment of each rank of this machine; each round of starts meets anew.

        Raises:
            ConfigError: node 0 is not in reach.
        """
        interface = interface_to(self.host)
        first = self.node * self.num_local
        return [
            {
                "RANK": str(first + number),
                "LOCAL_RANK": str(number),
                "WORLD_SIZE": str(self.num_ranks),
                "LOCAL_WORLD_SIZE": str(self.num_local),
                MEETING_PLACE: f"tcp://{self.rendezvous}/{round_number}",
                "GLOO_SOCKET_IFNAME": interface,
                "NCCL_SOCKET_IFNAME": interface,
            }
            for number in range(self.num_local)
        ]


def interface_to(host: str) -> str:
    """The network interface by which this machine reaches a host, lo for itself; raises ConfigError."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            # Nothing is sent: the kernel only looks up the way.
            probe.connect((host, 9))
            own = probe.getsockname()[0]
            for _, name in socket.if_nameindex():
                if _address_of(probe, name) == own:
                    return name
    except OSError as error:
        raise ConfigError(f"--rendezvous: {host} is not in reach ({error.strerror})") from None
    raise ConfigError(f"--rendezvous: no interface of this machine has the address {own}, which leads to {host}")


def _address_of(probe: socket.socket, interface: str) -> str | None:
    request = struct.pack("256s", interface.encode())
    try:
        # SIOCGIFADDR of netdevice(7); interfaces without an address have none to tell.
        return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), 0x8915, request)[20:24])
    except OSError:
        return None
