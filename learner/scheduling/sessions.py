"""Which connection carries which session, and what each is called. Pure: no clock, no socket, no file."""

from dataclasses import dataclass


@dataclass(slots=True)
class Session:
    """What was said hello for.

    Attributes:
        name: what it is called here: no other session has this name meanwhile.
        secret: by which its owner comes back over another connection; never shown.
        connection: that it was last heard over.
    """

    name: bytes
    secret: str
    connection: bytes


class SessionTable:
    """Sessions by what their owners alone know: a peer that shows the name of another gets one of its own.

    Args:
        max_sessions: more are not taken.
    """

    def __init__(self, max_sessions: int) -> None:
        self._max_sessions, self._num_renamed = max_sessions, 0
        self._by_name: dict[bytes, Session] = {}
        self._by_secret: dict[str, Session] = {}
        self._by_connection: dict[bytes, Session] = {}

    def join(self, connection: bytes, secret: str, wished_name: bytes) -> Session | None:
        """The session of a secret, from now on over this connection; None where there are too many.

        A session that the connection carried before under another secret has to be ended first (`of`).
        """
        session = self._by_secret.get(secret)
        if session is None:
            if len(self._by_name) >= self._max_sessions:
                return None
            session = Session(self._free(wished_name), secret, connection)
            self._by_name[session.name] = self._by_secret[secret] = session
        else:
            self._by_connection.pop(session.connection, None)
            session.connection = connection
        self._by_connection[connection] = session
        return session

    def of(self, connection: bytes) -> Session | None:
        """The session that a connection carries."""
        return self._by_connection.get(connection)

    def get(self, name: bytes) -> Session | None:
        """The session of a name."""
        return self._by_name.get(name)

    def end(self, name: bytes) -> None:
        """Forget a session; unknown ones are fine."""
        session = self._by_name.pop(name, None)
        if session is not None:
            del self._by_secret[session.secret]
            self._by_connection.pop(session.connection, None)

    def _free(self, wished: bytes) -> bytes:
        name = wished
        while name in self._by_name:
            self._num_renamed += 1
            name = wished + b"~%d" % self._num_renamed
        return name
