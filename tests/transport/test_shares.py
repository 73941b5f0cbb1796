import pytest

from dcpo_async.errors import FloodError
from dcpo_async.transport.pacing import Shares


def test_a_connection_is_heard_at_its_rate_after_a_burst() -> None:
    shares = Shares(10.0)
    heard = [shares.take(b"a", now=number / 1000) for number in range(1000)]
    assert heard.count(True) == 20 + 9
    assert shares.take(b"a", now=2.0) is True


def test_what_is_dropped_is_told_once_a_second_and_nobody_else_pays_for_it() -> None:
    shares = Shares(1.0)
    told = [taken for number in range(3000) if isinstance(taken := shares.take(b"a", number / 1000), FloodError)]
    assert len(told) == 2
    assert sum(flood.num_dropped for flood in told) == pytest.approx(2000, abs=5)
    assert shares.take(b"b", now=3.0) is True


def test_connections_that_went_are_forgotten() -> None:
    shares = Shares(1.0)
    for number in range(1000):
        shares.take(b"%d" % number, now=0.0)
    shares.take(b"later", now=10.0)
    assert shares.num_connections == 1
