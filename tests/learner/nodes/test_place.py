from pathlib import Path

import pytest

from dcpo_async.errors import ConfigError
from learner.nodes.place import NodePlace, interface_to


def test_ranks_of_the_second_machine_come_after_those_of_the_first() -> None:
    place = NodePlace(1, 2, 2, "127.0.0.1:29500")
    assert (place.num_ranks, place.coordinator) == (4, "tcp://127.0.0.1:29501")
    environments = place.environments(7)
    assert [(e["RANK"], e["LOCAL_RANK"], e["WORLD_SIZE"]) for e in environments] == [("2", "0", "4"), ("3", "1", "4")]
    assert {e["DCPO_MEETING_PLACE"] for e in environments} == {"tcp://127.0.0.1:29500/7"}
    assert {e["GLOO_SOCKET_IFNAME"] for e in environments} == {"lo"}


def test_a_host_that_cannot_be_reached_is_told() -> None:
    assert interface_to("127.0.0.1") == "lo"
    with pytest.raises(ConfigError, match=r"no-such-host\.invalid is not in reach"):
        interface_to("no-such-host.invalid")


def test_node_0_listens_where_others_come() -> None:
    assert NodePlace(0, 2, 1, "127.0.0.1:29500").listening() == "tcp://127.0.0.1:29501"
    with pytest.raises(ConfigError, match=r"localhost is 127.0.0.1 on this machine"):
        NodePlace(0, 2, 1, "localhost:29500").listening()


@pytest.mark.parametrize(
    ("num_nodes", "node", "rendezvous", "keys", "message"),
    [
        (0, 0, "h:1", "k", "--nodes 0: at least one"),
        (2, 2, "h:1", "k", "--node-rank 2: the machines are numbered from 0 to 1"),
        (2, 0, None, "k", "--nodes 2 needs --rendezvous HOST:PORT"),
        (2, 0, "h:1", None, "--nodes 2 needs --keys"),
        (2, 0, "h", "k", "--rendezvous h: write HOST:PORT"),
        (2, 0, "h:65535", "k", "--rendezvous h:65535: write HOST:PORT"),
    ],
)
def test_what_is_missing_is_said(
    num_nodes: int, node: int, rendezvous: str | None, keys: str | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        NodePlace.of(num_nodes, node, 1, rendezvous, Path(keys) if keys else None)
