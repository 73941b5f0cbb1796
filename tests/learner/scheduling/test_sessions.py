from learner.scheduling.sessions import SessionTable


def test_a_session_goes_with_its_secret_to_another_connection() -> None:
    table = SessionTable(10)
    session = table.join(b"first", "secret", b"actor")
    assert session is not None
    assert table.join(b"second", "secret", b"actor") is session
    assert table.of(b"first") is None
    assert table.of(b"second") is table.get(b"actor") is session
    assert session.connection == b"second"


def test_a_peer_that_shows_the_name_of_another_gets_one_of_its_own() -> None:
    table = SessionTable(10)
    first, other = table.join(b"a", "one", b"actor"), table.join(b"b", "two", b"actor")
    assert first is not None
    assert other is not None
    assert (first.name, other.name) == (b"actor", b"actor~1")
    assert table.of(b"a") is first


def test_a_session_that_ended_leaves_its_name_and_place() -> None:
    table = SessionTable(1)
    table.join(b"a", "one", b"actor")
    assert table.join(b"b", "two", b"other") is None
    table.end(b"actor")
    table.end(b"actor")
    assert table.of(b"a") is None
    again = table.join(b"b", "two", b"actor")
    assert again is not None
    assert again.name == b"actor"


def test_a_connection_of_before_takes_nothing_of_the_session_with_it() -> None:
    table = SessionTable(10)
    table.join(b"first", "secret", b"actor")
    table.join(b"second", "secret", b"actor")
    table.join(b"first", "another", b"stranger")
    table.end(b"stranger")
    session = table.of(b"second")
    assert session is not None
    assert session.name == b"actor"
