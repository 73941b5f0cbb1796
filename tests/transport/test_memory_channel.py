import pytest

from dcpo_async.errors import PeerLostError, ProtocolError
from dcpo_async.protocol.messages import Bye, Envelope, Want
from dcpo_async.transport.interfaces import Received
from dcpo_async.transport.memory_channel import Faults, MemoryNetwork


def want(number: int) -> Envelope:
    return Envelope(Want(num_leases=number))


async def numbers_through(faults: Faults, count: int) -> list[int]:
    network = MemoryNetwork(faults=faults)
    router, dealer = network.router(), network.dealer(b"actor")
    arrived = []
    for number in range(count):
        await dealer.send(want(number))
        arrived += [r.envelope.message.num_leases for r in await router.receive(0)]  # type: ignore[union-attr]
    return arrived


async def test_messages_go_both_ways_and_answers_find_their_peer() -> None:
    network = MemoryNetwork()
    router, one, two = network.router(), network.dealer(b"one"), network.dealer(b"two")
    await one.send(want(1))
    await two.send(want(2))
    assert await router.receive(1) == [Received(b"one", want(1)), Received(b"two", want(2))]
    await router.send(b"two", Envelope(Bye(reason="")))
    assert await two.receive(1) == Envelope(Bye(reason=""))
    assert await one.receive(0.01) is None


async def test_without_faults_all_arrive_in_order() -> None:
    assert await numbers_through(Faults(), 50) == list(range(50))


async def test_loss_takes_its_share() -> None:
    arrived = await numbers_through(Faults(seed=1, loss=0.5), 200)
    assert arrived == sorted(set(arrived))
    assert 70 < len(arrived) < 130


async def test_duplication_doubles_its_share() -> None:
    arrived = await numbers_through(Faults(seed=1, duplication=0.5), 200)
    assert set(arrived) == set(range(200))
    assert 270 < len(arrived) < 330


async def test_reordered_messages_arrive_once_and_late() -> None:
    arrived = await numbers_through(Faults(seed=1, reordering=0.3), 200)
    assert arrived != sorted(arrived)
    assert len(set(arrived)) == len(arrived) > 190


async def test_a_seed_repeats_its_faults() -> None:
    def faults() -> Faults:
        return Faults(seed=7, loss=0.2, duplication=0.2, reordering=0.2)

    assert await numbers_through(faults(), 100) == await numbers_through(faults(), 100)


async def test_a_peer_that_left_is_lost_and_so_is_a_router() -> None:
    network = MemoryNetwork()
    router, dealer = network.router(), network.dealer(b"actor")
    dealer.close()
    with pytest.raises(PeerLostError):
        await router.send(b"actor", want(1))
    router.close()
    with pytest.raises(PeerLostError):
        await dealer.send(want(1))


async def test_a_new_router_takes_over_with_an_empty_inbox() -> None:
    network = MemoryNetwork()
    old, dealer = network.router(), network.dealer(b"actor")
    await dealer.send(want(1))
    new = network.router()
    old.close()
    await dealer.send(want(2))
    assert await new.receive(0) == [Received(b"actor", want(2))]


async def test_a_peer_that_reads_nothing_is_lost() -> None:
    network = MemoryNetwork()
    router, _ = network.router(), network.dealer(b"actor")
    for _ in range(256):
        await router.send(b"actor", want(1))
    with pytest.raises(PeerLostError, match="256 messages wait"):
        await router.send(b"actor", want(1))


async def test_what_does_not_decode_is_received_as_an_error() -> None:
    network = MemoryNetwork(max_message_bytes=10)
    router, dealer = network.router(), network.dealer(b"actor")
    await dealer.send(want(1))
    [received] = await router.receive(0)
    assert isinstance(received.envelope, ProtocolError)
