"""What an actor's session tells the service."""

from dataclasses import dataclass

from dcpo_async.errors import DcpoError, RefusedError, UnsoundError
from dcpo_async.protocol.messages import Ack, Reject, Welcome
from dcpo_async.records import Lease, LeaseName


@dataclass(frozen=True, slots=True)
class Joined:
    """The run's settings are known, or have changed; comes before any lease."""

    welcome: Welcome


@dataclass(frozen=True, slots=True)
class LeaseGranted:
    """A lease to work on, by the settings under which it was granted."""

    lease: Lease
    welcome: Welcome


@dataclass(frozen=True, slots=True)
class LeaseRevoked:
    """Another session has got a lease that is being worked on: what comes of it would change nothing."""

    name: LeaseName
    detail: str


@dataclass(frozen=True, slots=True)
class GroupAcknowledged:
    """A group needs no further care; anything but "accepted" deserves a line in the log."""

    ack: Ack


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A weights version newer than any heard of before, or another one to stay at."""

    weights_version: int


@dataclass(frozen=True, slots=True)
class LetGo:
    """The coordinator lets this actor go, for a reason: so many leases are finished before it leaves; said once."""

    why: str
    num_working: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The coordinator wants nothing to do with this actor; the session is over."""

    reject: Reject

    @property
    def error(self) -> DcpoError:
        """What it is for the service: whether a new start may help depends on the reason."""
        return (UnsoundError if self.reject.reason == "unsound" else RefusedError)(self.reject.detail)


@dataclass(frozen=True, slots=True)
class Paused:
    """The learner stops for a while: what is held is kept until it is back."""

    detail: str
    until: str = ", until it is back"


@dataclass(frozen=True, slots=True)
class Dismissed:
    """The run takes no more groups; the session is over and nothing is wrong."""

    detail: str
    until: str = ""


@dataclass(frozen=True, slots=True)
class Complaint:
    """The coordinator could not read a message, or has no use for it; the session goes on."""

    detail: str


Event = (
    Complaint
    | Joined
    | LeaseGranted
    | LeaseRevoked
    | GroupAcknowledged
    | NewVersion
    | LetGo
    | Refused
    | Paused
    | Dismissed
)
