"""Which connection carries which session, and what each is called. Pure: no clock, no socket, no file."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from dcpo_async.records import Activity

MAX_REFUSALS_A_VERSION = 8


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


@dataclass(slots=True)
class ConnectedActor:
    """An actor or evaluator that has said hello, and is neither silent nor gone.

    Attributes:
        heard_at: when its last message came, in monotonic seconds.
        host, engine, role, gpus, release: as it said in its hello.
        num_granted, granted_at: leases since its last hello, and when the last one went out.
        activity, groups_in_flight, responses_in_flight, response_capacity, preemptions: as in its last heartbeat.
        tokens_generated: response tokens by its own count; None until its first heartbeat.
        canary_difference: largest difference from the canary of `weights_version` in its engine, in nats.
        refused: positions of the groups that were not sound since its last one that was.
        failures: leases that it could not finish, and groups of it that were not sound.
    """

    heard_at: float
    host: str
    engine: str
    role: str
    gpus: int = 0
    release: str = ""
    num_granted: int = 0
    granted_at: float = 0.0
    activity: Activity = "starting"
    weights_version: int = 0
    tokens_generated: int | None = None
    groups_in_flight: int = 0
    responses_in_flight: int = 0
    response_capacity: int = 0
    preemptions: int = 0
    groups_accepted: int = 0
    canary_difference: float | None = None
    refused: set[int] = field(default_factory=set)
    failures: int = 0

    def __str__(self) -> str:
        release = f"dcpo-async {self.release}" if self.release else "an earlier dcpo-async, to be upgraded next"
        return f"{self.host} with {self.engine}, {release}"


def fleet_metrics(connected: Iterable[ConnectedActor]) -> dict[str, float]:
    """Actors among those that are connected, how full they are, and how well they hold their weights."""
    actors = [actor for actor in connected if actor.role == "actor"]
    found = {
        "actors": float(len(actors)),
        "responses_in_flight": float(sum(actor.responses_in_flight for actor in actors)),
        "response_capacity": float(sum(actor.response_capacity for actor in actors)),
        "preemptions": float(sum(actor.preemptions for actor in actors)),
    }
    differences = [actor.canary_difference for actor in actors if actor.canary_difference is not None]
    return {**found, "canary_difference": max(differences)} if differences else found


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


class CanaryRefusals:
    """Versions that canaries have refused, by each session's own count.

    A count outlives its session, so that one that is lost and comes back counts once.

    Args:
        max_sessions: that are remembered.

    Attributes:
        total: of all sessions.
    """

    def __init__(self, max_sessions: int) -> None:
        self._counted: dict[str, int] = {}
        self._max_sessions, self.total = max_sessions, 0

    def count(self, secret: str, refusals: int, num_versions: int) -> int:
        """Take a session's count; returns it where it has grown, else 0.

        Args:
            refusals: whatever a peer says, of each version at most MAX_REFUSALS_A_VERSION count.
            num_versions: that there were to refuse.
        """
        counted, refusals = self._counted.get(secret, 0), min(refusals, MAX_REFUSALS_A_VERSION * num_versions)
        if refusals <= counted:
            return 0
        self._counted[secret] = refusals
        self.total += refusals - counted
        if len(self._counted) > self._max_sessions:
            del self._counted[next(iter(self._counted))]
        return refusals
